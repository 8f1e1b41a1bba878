"""Top-k, top-p and min-p over vocabulary shards, exactly.

Each shard offers its best candidates and the log-sum-exp of all its logits. A token left out by a shard is no better
than that shard's last candidate, so the merged order is certain down to the best of those last candidates. If a row's
filters reach further than that, all shards offer more, and more again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.collectives import Group

FIRST_OFFER = 64  # candidates a shard offers at first; top-p 0.95 rarely needs as many


def filtered_candidates(
    logits: Tensor, first_id: int, top_k: Tensor, top_p: Tensor, min_p: Tensor, vocab_size: int, group: Group
) -> tuple[Tensor, Tensor]:
    """The tokens each row may draw, as (logits, ids), both [rows, n], best first and -inf beyond the last.

    logits [rows, shard] are scaled by the temperature already. Filters apply in the order of Hugging Face
    transformers: top-k, then top-p of what is left, then min-p relative to the best. top_k 0, top_p 1 and min_p 0 are
    off; top_k [rows] int, top_p and min_p [rows] float32.
    """
    offer = max(FIRST_OFFER, int(top_k.max()))
    lse = logits.logsumexp(dim=1) if logits.shape[1] else logits.new_full((len(logits),), -torch.inf)
    while True:
        values, ids, certain, total = _merged(logits, first_id, offer, lse, group)
        kept = _kept(values, total, top_k, top_p, min_p)  # [rows]: how many of the merged order
        certainly = (values >= certain.unsqueeze(1)).sum(dim=1)
        exact = (kept < certainly) | ((kept == top_k) & (kept <= certainly))
        if offer >= vocab_size or bool(exact.all()):
            places = torch.arange(values.shape[1], device=values.device)
            return values.masked_fill(places >= kept.unsqueeze(1), -torch.inf), ids
        offer *= 8


def _merged(
    logits: Tensor, first_id: int, offer: int, lse: Tensor, group: Group
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All shards' candidates in descending order, how far down that order is certain, and the log-sum-exp of all."""
    rows, shard = logits.shape
    count = min(offer, shard)
    best, columns = logits.topk(count, dim=1)
    message = logits.new_full((rows, 2 * offer + 2), -torch.inf)
    message[:, :count] = best
    message[:, offer : offer + count] = (columns + first_id).float()  # exact below 2**24
    message[:, -2] = lse
    if count < shard:
        message[:, -1] = best[:, -1]
    gathered = group.all_gather(message).transpose(0, 1)  # [rows, size, ...]
    values = gathered[:, :, :offer].flatten(1)
    ids = gathered[:, :, offer : 2 * offer].flatten(1).clamp_(min=0).long()
    # Sorting by id first makes the order of equal logits the same in every layout.
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order), gathered[:, :, -1].amax(dim=1), gathered[:, :, -2].logsumexp(dim=1)


def _kept(values: Tensor, total: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """[rows]: how many of the sorted values [rows, n] pass; at least one."""
    places = torch.arange(values.shape[1], device=values.device)
    passing = torch.where(top_k.unsqueeze(1) > 0, places < top_k.unsqueeze(1), values > -torch.inf)
    among = values.masked_fill(~passing, -torch.inf).logsumexp(dim=1)
    norm = torch.where(top_k > 0, among, total)
    probabilities = (values - norm.unsqueeze(1)).exp()
    before = probabilities.cumsum(dim=1) - probabilities
    passing &= (before < top_p.unsqueeze(1)) | (top_p.unsqueeze(1) >= 1)
    passing &= values >= values[:, :1] + min_p.log().unsqueeze(1)
    return passing.sum(dim=1).clamp_(min=1)
