"""What happens to single rows between products: norms, sums, the gate."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.gpu.launch import on_device

_COLUMNS = 1024  # of a program of `gated`


@triton.jit
def _add_norm(x, delta, weight, total, out, columns, eps, ADDS: tl.constexpr, WIDTH: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    inside = at < columns
    kind = out.dtype.element_ty
    values = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(delta + row * columns + at, mask=inside, other=0.0).to(tl.float32)
        values = values.to(kind)
        tl.store(total + row * columns + at, values, mask=inside)
        values = values.to(tl.float32)
    root = tl.rsqrt(tl.sum(values * values, 0) / columns + eps)
    values = values * root * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + at, values.to(kind), mask=inside)


@triton.jit
def _gated(gate_up, out, columns, WIDTH: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = at < columns
    gate = tl.load(gate_up + row * 2 * columns + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * columns + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + at, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The root-mean-square norm of each row: x [tokens, columns] → the same."""
    return _launch(x, None, weight, eps)[1]


def add_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta, and its norm, each [tokens, columns]."""
    return _launch(x, delta, weight, eps)


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: [tokens, 2 * columns], gate's first, → [tokens, columns]."""
    tokens, columns = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, columns)
    if out.numel():
        with on_device(out):
            _gated[tokens, triton.cdiv(columns, _COLUMNS)](gate_up, out, columns, WIDTH=_COLUMNS)
    return out


def _launch(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total, out = x if delta is None else torch.empty_like(x), torch.empty_like(x)
    tokens, columns = x.shape
    if tokens:
        with on_device(x):
            _add_norm[(tokens,)](
                x, x if delta is None else delta, weight, total, out, columns, eps,
                ADDS=delta is not None, WIDTH=triton.next_power_of_2(columns), num_warps=8 if columns > 2048 else 4,
            )  # fmt: skip
    return total, out
