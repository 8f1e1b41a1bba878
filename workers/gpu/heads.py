"""From the product for queries, keys and values to the places where attention looks for them."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from workers.gpu.launch import on_device, tensors_of
from workers.model.attention import KVCache
from workers.model.kept_rows import LARGEST_CODE, LEAST
from workers.model.kernels import HeadNorms, Rotary

_TO_EVEN = tl.constexpr(1.5 * 2**23)  # a float32 that this is added to has no places after the point


@triton.jit
def _weight_of(q_norm, k_norm, dim, is_query):
    return tl.where(is_query, tl.load(q_norm + dim).to(tl.float32), tl.load(k_norm + dim).to(tl.float32))


@triton.jit
def _place(
    qkv, q_norm, k_norm, cos, sin, slots, q, keys, values, key_scales, value_scales, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr,
    NORMED: tl.constexpr, INT8: tl.constexpr, LARGEST: tl.constexpr, LITTLE: tl.constexpr,
):  # fmt: skip
    """All heads of one token. ROWS is their number, and DIMS their size, up to powers of two."""
    token = tl.program_id(0).to(tl.int64)
    row, dim = tl.arange(0, ROWS)[:, None], tl.arange(0, DIMS)[None, :]
    partner = (dim + DIM // 2) % DIM
    is_query, is_key = row < HEADS, (row >= HEADS) & (row < HEADS + KV_HEADS)
    is_value = (row >= HEADS + KV_HEADS) & (row < HEADS + 2 * KV_HEADS)
    inside = dim < DIM
    heads = qkv + (token * (HEADS + 2 * KV_HEADS) + row) * DIM
    real, turned = (row < HEADS + 2 * KV_HEADS) & inside, (is_query | is_key) & inside
    x = tl.load(heads + dim, mask=real, other=0.0).to(tl.float32)
    y = tl.load(heads + partner, mask=turned, other=0.0).to(tl.float32)
    if NORMED:
        root = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
        x *= tl.where(is_value, 1.0, root * _weight_of(q_norm, k_norm, dim % DIM, is_query))
        y *= root * _weight_of(q_norm, k_norm, partner, is_query)
    across = tl.load(cos + token * DIM + dim, mask=inside, other=0.0).to(tl.float32)
    along = tl.load(sin + token * DIM + dim, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(turned, x * across + y * along, x)
    rounded = x.to(q.dtype.element_ty)
    tl.store(q + (token * HEADS + row) * DIM + dim, rounded, mask=is_query & inside)
    key_at = tl.load(slots + token) * KV_HEADS + row - HEADS
    value_at = key_at - KV_HEADS
    if INT8:
        wide = rounded.to(tl.float32)
        most = tl.max(tl.abs(wide), 1)[:, None]
        code = ((wide * (LARGEST / tl.maximum(most, LITTLE)) + _TO_EVEN) - _TO_EVEN).to(tl.int8)
        tl.store(keys + key_at * DIM + dim, code, mask=is_key & inside)
        tl.store(values + value_at * DIM + dim, code, mask=is_value & inside)
        tl.store(key_scales + key_at, most / LARGEST, mask=is_key)
        tl.store(value_scales + value_at, most / LARGEST, mask=is_value)
    else:
        tl.store(keys + key_at * DIM + dim, rounded, mask=is_key & inside)
        tl.store(values + value_at * DIM + dim, rounded, mask=is_value & inside)


def place_heads(
    qkv: Tensor,
    norms: HeadNorms | None,
    rotary: Rotary,
    slots: Tensor,
    cache: KVCache,
) -> Tensor:
    """Writes keys and values to the cache at slots [tokens]; returns the queries [tokens, heads, head_dim].

    qkv [tokens, heads + 2 * kv_heads, head_dim]; `norms`: weights [head_dim] of queries and keys, and eps; `rotary`:
    cos and signed sin, [tokens, 1, head_dim].
    """
    tokens, heads, dim = qkv.shape
    kv_heads = cache.keys.kept.shape[2]
    q = qkv.new_empty(tokens, heads - 2 * kv_heads, dim)
    q_norm, k_norm, eps = (qkv, qkv, 0.0) if norms is None else norms
    with on_device(qkv):
        _place[(tokens,)](
            qkv, q_norm, k_norm, *rotary, slots, q, *tensors_of(cache), eps,
            HEADS=heads - 2 * kv_heads, KV_HEADS=kv_heads, ROWS=triton.next_power_of_2(heads), DIM=dim,
            DIMS=triton.next_power_of_2(dim), NORMED=norms is not None, INT8=cache.keys.scales is not None,
            LARGEST=LARGEST_CODE, LITTLE=LEAST,
            num_warps=4 if heads <= 64 else 8,
        )  # fmt: skip
    return q
