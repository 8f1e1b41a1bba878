"""Attention straight from the KV blocks of a paged cache (Kwon et al., "Efficient Memory Management for Large Language
Model Serving with PagedAttention", 2023), with softmax computed as keys come by (Dao, "FlashAttention-2", 2023)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.gpu.launch import on_device, tensors_of
from workers.gpu.tiles import PagedPlan, Tiles, Tiling
from workers.model.attention import KVCache

_LOG2_E = 1.4426950408889634
_MOST_SPLITS = 64


@triton.jit
def _attend(
    q, keys, values, key_scales, value_scales, tables, tiles, firsts, out, partial, stats,
    scale, table_stride, q_stride, window,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr, MOST: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, INT8: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """A tile's rows (token by token, each with the query heads of one KV head) against one part of its keys.

    DIMS is DIM up to a power of two. With SPLITS 1 `out` gets the result; else `partial` [tiles, kv_heads, splits,
    rows, DIMS] the weighted sum of values and `stats` […, rows, 2] the maximum and the sum of weights.
    """
    tile, kv, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row, position = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    count, slot = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    first_head = tl.load(firsts + kv)
    readers = tl.load(firsts + kv + 1) - first_head
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    token, reader = row // MOST, row % MOST
    real = (token < count) & (reader < readers)
    place = (first_row + token) * q_stride + (first_head + reader) * DIM
    queries = tl.load(q + place[:, None] + dim[None, :], mask=real[:, None] & (dim < DIM)[None, :], other=0.0)

    begin = 0
    if WINDOW:
        begin = tl.maximum(position - window + 1, 0) // KEYS * KEYS
    end = position + count
    part = tl.cdiv(tl.cdiv(end - begin, KEYS), SPLITS) * KEYS
    begin += split * part
    end = tl.minimum(end, begin + part)

    most = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, DIMS], tl.float32)
    for start in range(begin, end, KEYS):
        at = start + tl.arange(0, KEYS)
        there = at < end
        block = tl.load(tables + slot * table_stride + at // SIZE, mask=there, other=0)
        kept = (block * SIZE + at % SIZE) * KV_HEADS + kv
        here = kept[:, None] * DIM + dim[None, :]
        inside = there[:, None] & (dim < DIM)[None, :]
        key = tl.load(keys + here, mask=inside, other=0)
        scores = tl.dot(queries, tl.trans(key.to(queries.dtype)), input_precision="tf32x3") * scale
        if INT8:
            scores *= tl.load(key_scales + kept, mask=there, other=0.0)[None, :]
        behind = (position + token)[:, None] - at[None, :]
        seen = (behind >= 0) & there[None, :]
        if WINDOW:
            seen &= behind < window
        scores = tl.where(seen, scores, -float("inf"))
        grown = tl.maximum(most, tl.max(scores, 1))
        against = tl.where(grown == -float("inf"), 0.0, grown)  # of a row that has seen no key yet
        weights = tl.exp2(scores - against[:, None])
        shrunk = tl.exp2(most - against)
        total = total * shrunk + tl.sum(weights, 1)
        most = grown
        if INT8:
            weights *= tl.load(value_scales + kept, mask=there, other=0.0)[None, :]
        value = tl.load(values + here, mask=inside, other=0)
        mixed = tl.dot(
            weights.to(queries.dtype), value.to(queries.dtype), mixed * shrunk[:, None], input_precision="tf32x3"
        )

    if SPLITS == 1:
        mixed = mixed / tl.where(real, total, 1.0)[:, None]
        tl.store(
            out + place[:, None] + dim[None, :], mixed.to(queries.dtype), mask=real[:, None] & (dim < DIM)[None, :]
        )
    else:
        line = ((tile * KV_HEADS + kv) * SPLITS + split) * ROWS + row
        tl.store(partial + line[:, None] * DIMS + dim[None, :], mixed)
        tl.store(stats + line * 2, most)
        tl.store(stats + line * 2 + 1, total)


@triton.jit
def _join(
    partial, stats, tiles, firsts, out, q_stride,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr, MOST: tl.constexpr, ROWS: tl.constexpr,
    SPLITS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One row of a tile: what SPLITS programs have found, made one (Dao et al., "Flash-Decoding", 2023). PARTS is
    SPLITS up to a power of two."""
    tile, kv, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token, reader = row // MOST, row % MOST
    first_head = tl.load(firsts + kv)
    if (token < tl.load(tiles + tile * 4 + 2)) & (reader < tl.load(firsts + kv + 1) - first_head):
        split, dim = tl.arange(0, PARTS), tl.arange(0, DIMS)
        line = ((tile * KV_HEADS + kv) * SPLITS + split) * ROWS + row
        most = tl.load(stats + line * 2, mask=split < SPLITS, other=-float("inf"))
        total = tl.load(stats + line * 2 + 1, mask=split < SPLITS, other=0.0)
        share = tl.exp2(most - tl.max(most, 0))
        found = tl.load(partial + line[:, None] * DIMS + dim[None, :], mask=(split < SPLITS)[:, None], other=0.0)
        mixed = tl.sum(found * share[:, None], 0) / tl.sum(total * share, 0)
        place = (tl.load(tiles + tile * 4) + token) * q_stride + (first_head + reader) * DIM
        tl.store(out + place + dim, mixed.to(out.dtype.element_ty), mask=dim < DIM)


def paged_attention(q: Tensor, cache: KVCache, plan: PagedPlan, tiling: Tiling, window: int, programs: int) -> Tensor:
    """q [tokens, heads, head_dim] → the same. Each query looks at its own sequence up to itself, within `window` tokens
    if that is not 0, as the cache has it. `programs`: what the device can run at once."""
    out = torch.empty_like(q)
    longest = plan.tables.shape[1] * cache.keys.kept.shape[1]
    for tiles in (plan.few, plan.many):
        count = len(tiles.entries)
        if count:
            splits = _splits(count * tiling.kv_heads, programs, longest // tiling.keys) if tiles is plan.few else 1
            _run(q, out, cache, plan.tables, tiles, tiling, window, splits)
    return out


def _splits(tiles: int, programs: int, iterations: int) -> int:
    """Into how many parts the keys of a tile are cut, so that few sequences keep a whole device busy."""
    return max(1, min(_MOST_SPLITS, programs // tiles, iterations // 2))


def _run(
    q: Tensor, out: Tensor, cache: KVCache, tables: Tensor, tiles: Tiles, tiling: Tiling, window: int, splits: int
) -> None:
    dim, count, kv_heads = q.shape[2], len(tiles.entries), tiling.kv_heads
    dims = max(16, triton.next_power_of_2(dim))
    lines = count * kv_heads * splits * tiles.rows if splits > 1 else 0
    partial = torch.empty(lines, dims, dtype=torch.float32, device=q.device)
    stats = torch.empty(lines, 2, dtype=torch.float32, device=q.device)
    with on_device(q):
        _attend[count, kv_heads, splits](
            q, *tensors_of(cache), tables, tiles.entries, tiling.firsts, out, partial, stats,
            _LOG2_E * dim**-0.5, tables.stride(0), q.stride(0), window,
            KV_HEADS=kv_heads, DIM=dim, DIMS=dims, MOST=tiling.most, SIZE=cache.keys.kept.shape[1], ROWS=tiles.rows,
            KEYS=tiling.keys, SPLITS=splits, INT8=cache.keys.scales is not None, WINDOW=window > 0,
            num_warps=8 if tiles.rows > 64 else 4, num_stages=2,
        )  # fmt: skip
        if splits > 1:
            _join[count, kv_heads, tiles.rows](
                partial, stats, tiles.entries, tiling.firsts, out, q.stride(0),
                KV_HEADS=kv_heads, DIM=dim, DIMS=dims, MOST=tiling.most, ROWS=tiles.rows, SPLITS=splits,
                PARTS=triton.next_power_of_2(splits), num_warps=4,
            )  # fmt: skip
