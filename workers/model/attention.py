"""Attention in torch over a paged cache: sequences' blocks are copied together, and what may be seen is a mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.model.batch import Sequences
from workers.model.kept_rows import KeptRows
from workers.transfer import to_device


class KVCache:
    """The KV blocks of one layer."""

    def __init__(self, keys: KeptRows, values: KeptRows) -> None:
        self.keys, self.values = keys, values

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps keys and values [n, kv_heads, head_dim] at slots [n]; returns them as they will be read."""
        return self.keys.write(slots, keys), self.values.write(slots, values)

    def read(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the blocks, one after the other: [len(blocks) * block_size, kv_heads, head_dim]."""
        return self.keys.read(blocks), self.values.read(blocks)


@dataclass(frozen=True)
class Decodes:
    """Sequences with one token in this step, and contexts of similar length.

    rows [n]: their tokens' places in the flat batch. blocks [n * blocks]: their block tables, padded to the longest.
    masks: by sliding window, [n, 1, 1, blocks * block_size], True where the token may look.
    """

    rows: Tensor
    blocks: Tensor
    masks: dict[int, Tensor]


@dataclass(frozen=True)
class Chunk:
    """A sequence with several tokens in this step, [start, stop) of the flat batch, at positions from `position` on.

    blocks [blocks]: its block table. masks: by sliding window, [tokens, context], or None where plain causal.
    """

    start: int
    stop: int
    position: int
    blocks: Tensor
    masks: dict[int, Tensor | None]

    @property
    def context(self) -> int:
        """Tokens of the sequence up to the end of the chunk."""
        return self.position + self.stop - self.start


@dataclass(frozen=True)
class AttentionPlan:
    decodes: tuple[Decodes, ...]
    chunks: tuple[Chunk, ...]


def attend(q: Tensor, k: Tensor, v: Tensor, cache: KVCache, plan: AttentionPlan, window: int) -> Tensor:
    """q [tokens, heads, head_dim]; k, v [tokens, kv_heads, head_dim] as the cache has them; returns [tokens, heads,
    head_dim]. Each query looks at its own sequence up to itself, within `window` tokens if that is not 0.
    """
    out = torch.empty_like(q)
    for group in plan.decodes:
        out[group.rows] = _decode(q[group.rows], cache, group, window)
    for chunk in plan.chunks:
        here = slice(chunk.start, chunk.stop)
        out[here] = _prefill(q[here], k[here], v[here], cache, chunk, window)
    return out


def attention_plan(sequences: Sequences, block_size: int, windows: frozenset[int]) -> AttentionPlan:
    """`windows` are the distinct sliding windows of the rank's layers (0 for full attention)."""
    counts = sequences.counts
    return AttentionPlan(
        _decodes(sequences, (counts == 1).nonzero()[:, 0], block_size, windows),
        tuple(_chunk(sequences, number, block_size, windows) for number in (counts > 1).nonzero()[:, 0].tolist()),
    )


def _decodes(sequences: Sequences, which: Tensor, block_size: int, windows: frozenset[int]) -> tuple[Decodes, ...]:
    """One group for each power of two of the context's blocks, so that no context is padded to twice its length."""
    if not len(which):
        return ()
    device = sequences.tables.device
    blocks = sequences.starts[which] // block_size + 1
    bucket = torch.ceil(torch.log2(blocks.float())).int()
    groups = []
    for value in sorted(set(bucket.tolist())):
        members, width = which[bucket == value], int(blocks[bucket == value].max())
        rows, slots, positions = (
            to_device(x[members], device) for x in (sequences.firsts, sequences.slots, sequences.starts)
        )
        behind = positions.unsqueeze(1) - torch.arange(width * block_size, device=device)  # how far back each key is
        groups.append(
            Decodes(
                rows=rows,
                blocks=sequences.tables[slots, :width].reshape(-1),
                masks={window: _allowed(behind, window)[:, None, None] for window in windows},
            )
        )
    return tuple(groups)


def _chunk(sequences: Sequences, number: int, block_size: int, windows: frozenset[int]) -> Chunk:
    slot, position, start, count = (
        int(x[number]) for x in (sequences.slots, sequences.starts, sequences.firsts, sequences.counts)
    )
    device, context = sequences.tables.device, position + count
    behind = torch.arange(position, context, device=device)[:, None] - torch.arange(context, device=device)
    return Chunk(
        start=start,
        stop=start + count,
        position=position,
        blocks=sequences.tables[slot, : -(-context // block_size)],
        masks={w: None if position == 0 and (not w or context <= w) else _allowed(behind, w) for w in windows},
    )


def _decode(q: Tensor, cache: KVCache, group: Decodes, window: int) -> Tensor:
    """q [n, heads, head_dim] → the same; the query heads of a KV head stand in for query positions."""
    n, heads, dim = q.shape
    keys, values = cache.read(group.blocks)
    kv_heads = keys.shape[1]
    keys = keys.view(n, -1, kv_heads, dim).transpose(1, 2)  # [n, kv_heads, context, head_dim]
    values = values.view(n, -1, kv_heads, dim).transpose(1, 2)
    grouped = q.view(n, kv_heads, heads // kv_heads, dim)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=group.masks[window])
    return out.reshape(n, heads, dim)


def _prefill(q: Tensor, k: Tensor, v: Tensor, cache: KVCache, chunk: Chunk, window: int) -> Tensor:
    """q [n, heads, head_dim] → the same; k and v are the chunk's own, what came before is read from the cache."""
    if chunk.position:
        k, v = (x[: chunk.context] for x in cache.read(chunk.blocks))
    mask = chunk.masks[window]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),  # [1, heads, n, head_dim]
        k.transpose(0, 1).unsqueeze(0),
        v.transpose(0, 1).unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=True,
    )
    return out.squeeze(0).transpose(0, 1)


def _allowed(behind: Tensor, window: int) -> Tensor:
    causal = behind >= 0
    return causal & (behind < window) if window else causal
