"""Products with 8-bit floats (E4M3), which GPUs before Ada and Hopper do not know: their bits are moved to where a
float16 has them."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from partitioning.quantised import GROUP, FloatCodes
from workers.gpu.expansion import OUTPUTS, TILE, ExpandedLinear, options_for, write_sums

_WHOLE = tl.constexpr(GROUP)
_EXCESS = tl.constexpr(2.0**8)  # a float16's exponent counts from 15, that of E4M3 from 7


@triton.jit
def _scales_of(scales, output, first, outputs, GROUPS: tl.constexpr, TILE: tl.constexpr):
    """Of TILE groups from `first` on of each output, for what `_floats_of` gives: float32 [outputs, TILE, 1]."""
    group = first + tl.arange(0, TILE)
    real = (output < outputs)[:, None] & (group < GROUPS)[None, :]
    scale = tl.load(scales + output[:, None] * GROUPS + group[None, :], mask=real, other=0.0)
    return scale[:, :, None] * _EXCESS


@triton.jit
def _floats_of(codes, output, at, inputs, outputs):
    """The floats at places `at` of each output, without 2**8: float16 [outputs, places]."""
    real = (output < outputs)[:, None] & (at < inputs)[None, :]
    code = tl.load(codes + output[:, None] * inputs + at[None, :], mask=real, other=0).to(tl.uint16)
    return ((code & 0x80) << 8 | (code & 0x7F) << 7).to(tl.float16, bitcast=True)


@triton.jit
def _scaled(floats, scale, OUTPUTS: tl.constexpr, TILE: tl.constexpr):
    """floats [OUTPUTS, TILE * 32] by scale [OUTPUTS, TILE or 1, 1]: float32."""
    wide = tl.reshape(floats, [OUTPUTS, TILE, _WHOLE]).to(tl.float32) * scale
    return tl.reshape(wide, [OUTPUTS, TILE * _WHOLE])


@triton.jit
def _product_of_floats(
    x, codes, scales, bias, out, rows, inputs, outputs,
    GROUPS: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """x [rows, inputs], at most ROWS, by the transpose of OUTPUTS of the weights. GROUPS: scales of an output."""
    output = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    row = tl.arange(0, ROWS).to(tl.int64)
    kind = x.dtype.element_ty
    sums = tl.zeros([ROWS, OUTPUTS], tl.float32)
    if GROUPS == 1:
        scale = _scales_of(scales, output, 0, outputs, GROUPS, 1)
    for first in range(0, inputs, TILE * _WHOLE):
        at = first + tl.arange(0, TILE * _WHOLE)
        floats = _floats_of(codes, output, at, inputs, outputs)
        if GROUPS > 1:
            scale = _scales_of(scales, output, first // _WHOLE, outputs, GROUPS, TILE)
        w = _scaled(floats, scale, OUTPUTS, TILE).to(kind)
        inside = (row < rows)[:, None] & (at < inputs)[None, :]
        left = tl.load(x + row[:, None] * inputs + at[None, :], mask=inside, other=0.0)
        sums = tl.dot(left, tl.trans(w), sums, input_precision="tf32x3")
    write_sums(sums, bias, out, row, output, rows, outputs, BIAS)


@triton.jit
def _expand_floats(
    codes, scales, out, inputs, outputs, GROUPS: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr
):
    """The weights [outputs, inputs], a tile of them."""
    output = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    first = tl.program_id(1) * TILE
    at = first * _WHOLE + tl.arange(0, TILE * _WHOLE)
    if GROUPS == 1:
        scale = _scales_of(scales, output, 0, outputs, GROUPS, 1)
    else:
        scale = _scales_of(scales, output, first, outputs, GROUPS, TILE)
    w = _scaled(_floats_of(codes, output, at, inputs, outputs), scale, OUTPUTS, TILE)
    inside = (output < outputs)[:, None] & (at < inputs)[None, :]
    tl.store(out + output[:, None] * inputs + at[None, :], w.to(out.dtype.element_ty), mask=inside)


class FloatLinear(ExpandedLinear):
    def __init__(self, weight: FloatCodes, bias: Tensor | None) -> None:
        super().__init__(weight.codes, weight.shape, bias)
        self._scales = weight.scales

    def _write(self, out: Tensor, here: slice, programs: tuple[int, int]) -> None:
        _expand_floats[programs](
            self._codes[here], self._scales[here], out, self._inputs, len(out),
            GROUPS=self._scales.shape[1], OUTPUTS=OUTPUTS, TILE=TILE,
        )  # fmt: skip

    def _few(self, x: Tensor, out: Tensor, programs: int) -> None:
        _product_of_floats[(programs,)](
            x, self._codes, self._scales, x if self._bias is None else self._bias, out,
            len(x), self._inputs, self._outputs,
            GROUPS=self._scales.shape[1], BIAS=self._bias is not None, **options_for(x),
        )  # fmt: skip
