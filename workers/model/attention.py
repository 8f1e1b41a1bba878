"""Paged attention over a flat batch: the one place that picks an attention back-end."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.model.batch import Batch, Chunk, Decodes
from workers.model.kept_rows import KeptRows


class KVCache:
    """The KV blocks of one layer."""

    def __init__(self, keys: KeptRows, values: KeptRows) -> None:
        self._keys, self._values = keys, values

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps keys and values [n, kv_heads, head_dim] at slots [n]; returns them as they will be read."""
        return self._keys.write(slots, keys), self._values.write(slots, values)

    def read(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the blocks, one after the other: [len(blocks) * block_size, kv_heads, head_dim]."""
        return self._keys.read(blocks), self._values.read(blocks)


def attend(q: Tensor, k: Tensor, v: Tensor, cache: KVCache, batch: Batch, window: int) -> Tensor:
    """Writes k and v to the cache and attends.

    q [tokens, heads, head_dim]; k, v [tokens, kv_heads, head_dim]; returns [tokens, heads, head_dim]. Each query looks
    at its own sequence up to itself, within `window` tokens if that is not 0.
    """
    # A prompt looks at its keys and values as they are kept, however it is cut into chunks.
    k, v = cache.write(batch.cache_slots, k, v)
    out = torch.empty_like(q)
    for group in batch.decodes:
        out[group.rows] = _decode(q[group.rows], cache, group, window)
    for chunk in batch.chunks:
        here = slice(chunk.start, chunk.stop)
        out[here] = _prefill(q[here], k[here], v[here], cache, chunk, window)
    return out


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
