"""Draws on any device of torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from partitioning.plan import Span
from workers.collectives import Group
from workers.sampling.draws import Draws, filtering
from workers.sampling.filtered import filtered_candidates
from workers.sampling.noise import gumbel, token_keys
from workers.seeds import row_keys
from workers.transfer import to_device


class TorchDrawing:
    """See `workers.sampling.drawing.Drawing`."""

    def __init__(self, vocab: Span, vocab_size: int, group: Group, device: torch.device) -> None:
        self._first_id = vocab.start
        self._vocab_size = vocab_size
        self._group = group
        self._device = device
        self._keys = token_keys(torch.arange(vocab.start, vocab.stop, device=device))  # [shard]

    def draw(self, logits: Tensor, draws: Draws) -> Tensor:
        random, filtered = draws["temperature"] > 0, filtering(draws)
        keys = self._sent(row_keys(draws["seed"], draws["position"]))
        if random.any():
            logits /= self._sent(np.where(random, draws["temperature"], 1)).unsqueeze(1)
        if len(plain := np.flatnonzero(random & ~filtered)):
            rows = self._sent(plain)
            logits[rows] += gumbel(self._keys, keys[rows])
        tokens = likeliest(self._group, *self._best(logits))
        if filtered.any():
            rows = self._sent(np.flatnonzero(filtered))
            tokens[rows] = self._draw_filtered(logits[rows], draws[filtered], keys[rows])
        return tokens

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """This shard's largest [rows] and their ids."""
        if not logits.shape[1]:
            value = logits.new_full((len(logits),), -torch.inf)
            return value, torch.full_like(value, self._first_id, dtype=torch.int64)
        value, column = logits.max(dim=1)
        return value, column + self._first_id

    def _draw_filtered(self, logits: Tensor, draws: Draws, keys: Tensor) -> Tensor:
        top_k, top_p, min_p = (self._sent(draws[name]) for name in ("top_k", "top_p", "min_p"))
        values, ids = filtered_candidates(
            logits, self._first_id, top_k.clamp(max=self._vocab_size), top_p, min_p, self._vocab_size, self._group
        )
        winner = (values + gumbel(token_keys(ids), keys)).argmax(dim=1, keepdim=True)
        return ids.gather(1, winner)[:, 0]

    def _sent(self, values: npt.NDArray[np.generic]) -> Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(values)), self._device)


def likeliest(group: Group, scores: Tensor, ids: Tensor) -> Tensor:
    """[rows] ids of the largest of all shards' scores [rows]; of equal ones the lowest."""
    if group.size == 1:
        return ids
    offers = group.all_gather(torch.stack([scores, ids.float()]))  # ids are exact below 2**24
    scores, ids = offers.unbind(1)
    return ids.masked_fill(scores < scores.amax(dim=0), torch.inf).amin(dim=0).long()
