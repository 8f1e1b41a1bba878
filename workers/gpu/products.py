"""Products with integers of 8 or 4 bits, in groups that are expanded, and with one scale for an output."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from partitioning.quantised import GROUP, Channels, Quantised
from workers.gpu.expansion import OUTPUTS, TILE, ExpandedLinear, options_for, write_sums
from workers.model.kept_rows import LARGEST_CODE, LEAST

_MULTIPLE, _LEAST_ROWS = 8, 32  # what torch's products of 8 bits want of their sizes

_WHOLE, _HALF = tl.constexpr(GROUP), tl.constexpr(GROUP // 2)  # codes of a group; bytes that hold them in 4 bits


@triton.jit
def _scales_of(
    scales,
    offsets,
    output,
    first,
    outputs,
    GROUPS: tl.constexpr,
    OFFSETS: tl.constexpr,
    CENTRE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Of TILE groups from `first` on of each output: scales and offsets, float32 [outputs, TILE, 1]."""
    group = first + tl.arange(0, TILE)
    at = output[:, None] * GROUPS + group[None, :]
    real = (output < outputs)[:, None] & (group < GROUPS)[None, :]
    scale = tl.load(scales + at, mask=real, other=0.0).to(tl.float32)
    offset = tl.load(offsets + at, mask=real, other=0.0).to(tl.float32) if OFFSETS else scale * -CENTRE
    return scale[:, :, None], offset[:, :, None]


@triton.jit
def _codes_of(codes, output, first, outputs, GROUPS: tl.constexpr, BYTES: tl.constexpr, TILE: tl.constexpr):
    """The bytes of TILE groups of BYTES from `first` on of each output: [outputs, TILE * BYTES]."""
    byte = first * BYTES + tl.arange(0, TILE * BYTES)
    real = (output < outputs)[:, None] & (byte < GROUPS * BYTES)[None, :]
    return tl.load(codes + output[:, None] * (GROUPS * BYTES) + byte[None, :], mask=real, other=0)


@triton.jit
def _floats_of(codes, scale, offset, OUTPUTS: tl.constexpr, TILE: tl.constexpr, COUNT: tl.constexpr):
    """codes [OUTPUTS, TILE * COUNT], COUNT of each group, as the weights that they stand for."""
    wide = tl.reshape(codes, [OUTPUTS, TILE, COUNT]).to(tl.float32) * scale + offset
    return tl.reshape(wide, [OUTPUTS, TILE * COUNT])


@triton.jit
def _product(
    x, codes, scales, offsets, bias, out, rows, inputs, outputs,
    GROUPS: tl.constexpr, BITS: tl.constexpr, OFFSETS: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """x [rows, inputs], at most ROWS, by the transpose of OUTPUTS of the weights."""
    output = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    row = tl.arange(0, ROWS).to(tl.int64)
    kind = x.dtype.element_ty
    line = x + row[:, None] * inputs
    sums = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for first in range(0, GROUPS, TILE):
        scale, offset = _scales_of(scales, offsets, output, first, outputs, GROUPS, OFFSETS, 2 ** (BITS - 1), TILE)
        if BITS == 8:
            code = _codes_of(codes, output, first, outputs, GROUPS, _WHOLE, TILE)
            at = first * _WHOLE + tl.arange(0, TILE * _WHOLE)
            left = tl.load(line + at[None, :], mask=(row < rows)[:, None] & (at < inputs)[None, :], other=0.0)
            w = _floats_of(code, scale, offset, OUTPUTS, TILE, _WHOLE)
            sums = tl.dot(left, tl.trans(w.to(kind)), sums, input_precision="tf32x3")
        else:
            code = _codes_of(codes, output, first, outputs, GROUPS, _HALF, TILE)
            place = tl.arange(0, TILE * _HALF)
            low = first * _WHOLE + place // _HALF * _WHOLE + place % _HALF
            left = tl.load(line + low[None, :], mask=(row < rows)[:, None] & (low < inputs)[None, :], other=0.0)
            w = _floats_of(code & 15, scale, offset, OUTPUTS, TILE, _HALF)
            sums = tl.dot(left, tl.trans(w.to(kind)), sums, input_precision="tf32x3")
            high = low + _HALF
            left = tl.load(line + high[None, :], mask=(row < rows)[:, None] & (high < inputs)[None, :], other=0.0)
            w = _floats_of(code >> 4, scale, offset, OUTPUTS, TILE, _HALF)
            sums = tl.dot(left, tl.trans(w.to(kind)), sums, input_precision="tf32x3")
    write_sums(sums, bias, out, row, output, rows, outputs, BIAS)


@triton.jit
def _expand(
    codes, scales, offsets, out, inputs, outputs,
    GROUPS: tl.constexpr, BITS: tl.constexpr, OFFSETS: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The weights [outputs, inputs], a tile of them."""
    output = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    first = tl.program_id(1) * TILE
    kind = out.dtype.element_ty
    line = out + output[:, None] * inputs
    scale, offset = _scales_of(scales, offsets, output, first, outputs, GROUPS, OFFSETS, 2 ** (BITS - 1), TILE)
    if BITS == 8:
        code = _codes_of(codes, output, first, outputs, GROUPS, _WHOLE, TILE)
        at = first * _WHOLE + tl.arange(0, TILE * _WHOLE)
        w = _floats_of(code, scale, offset, OUTPUTS, TILE, _WHOLE)
        tl.store(line + at[None, :], w.to(kind), mask=(output < outputs)[:, None] & (at < inputs)[None, :])
    else:
        code = _codes_of(codes, output, first, outputs, GROUPS, _HALF, TILE)
        place = tl.arange(0, TILE * _HALF)
        low = first * _WHOLE + place // _HALF * _WHOLE + place % _HALF
        w = _floats_of(code & 15, scale, offset, OUTPUTS, TILE, _HALF)
        tl.store(line + low[None, :], w.to(kind), mask=(output < outputs)[:, None] & (low < inputs)[None, :])
        high = low + _HALF
        w = _floats_of(code >> 4, scale, offset, OUTPUTS, TILE, _HALF)
        tl.store(line + high[None, :], w.to(kind), mask=(output < outputs)[:, None] & (high < inputs)[None, :])


class GroupLinear(ExpandedLinear):
    def __init__(self, weight: Quantised, bias: Tensor | None) -> None:
        super().__init__(packed(weight), weight.shape, bias)
        self._bits, self._scales, self._offsets = weight.bits, weight.scales, weight.offsets

    def _write(self, out: Tensor, here: slice, programs: tuple[int, int]) -> None:
        _expand[programs](
            self._codes[here], self._scales[here], self._second[here], out, self._inputs, len(out),
            GROUPS=self._scales.shape[1], BITS=self._bits, OFFSETS=self._offsets is not None,
            OUTPUTS=OUTPUTS, TILE=TILE,
        )  # fmt: skip

    def _few(self, x: Tensor, out: Tensor, programs: int) -> None:
        _product[(programs,)](
            x, self._codes, self._scales, self._second, x if self._bias is None else self._bias, out,
            len(x), self._inputs, self._outputs, GROUPS=self._scales.shape[1],
            BITS=self._bits, OFFSETS=self._offsets is not None, BIAS=self._bias is not None, **options_for(x),
        )  # fmt: skip

    @property
    def _second(self) -> Tensor:
        return self._scales if self._offsets is None else self._offsets


def packed(weight: Quantised) -> Tensor:
    """Codes as kernels read them, whole groups: uint8 [out, groups * 32] in 8 bits; in 4 bits [out, groups * 16], where
    byte j of a group has the codes j and, in its upper half, 16 + j."""
    groups = weight.scales.shape[1]
    short = groups * GROUP - weight.shape[1]
    codes = F.pad(weight.codes, (0, short)) if short else weight.codes
    if weight.bits == 8:
        return codes
    low, high = codes.view(len(codes), groups, 2, GROUP // 2).unbind(2)
    return (low | high << 4).flatten(1)


class ChannelLinear:
    """x [tokens, in] → [tokens, out]: sums of products of integers, as x is rounded to 8 bits, too, with one scale for
    each token."""

    def __init__(self, weight: Channels, bias: Tensor | None) -> None:
        rows, cols = weight.shape
        signed = (weight.codes ^ 0x80).view(torch.int8)  # from centred codes
        self._outputs, self._bias, self._scales = rows, bias, weight.scales
        self._weight = F.pad(signed, (0, -cols % _MULTIPLE, 0, -rows % _MULTIPLE))

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        scales = wide.abs().amax(dim=1, keepdim=True).clamp(min=LEAST) / LARGEST_CODE
        codes = (wide / scales).round().to(torch.int8)
        codes = F.pad(codes, (0, self._weight.shape[1] - x.shape[1], 0, max(0, _LEAST_ROWS - len(x))))
        sums = torch._int_mm(codes, self._weight.t())[: len(x), : self._outputs]
        out = sums * scales * self._scales
        return (out if self._bias is None else out + self._bias.float()).to(x.dtype)
