"""What products with weights of few bits have in common: weights are expanded in registers where there are few rows,
which memory bounds, and part by part for torch's own product where there are many."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import triton
import triton.language as tl
from torch import Tensor

from partitioning.quantised import GROUP
from workers.gpu.launch import on_device

_EXPANDED_BYTES = 64 << 20  # of weights at a time, where there are many rows
_FEW_BYTES = 128  # of a column of x, up to which weights are expanded in registers: 64 rows of bfloat16
# Of an iteration: outputs, and groups of 32 inputs. A thread then has two groups' scales, 4 bytes where these are of 16
# bits: what is less cannot be fetched ahead.
OUTPUTS, TILE = 32, 8


@triton.jit
def write_sums(sums, bias, out, row, output, rows, outputs, BIAS: tl.constexpr):
    """sums float32 [rows of x, outputs], with the bias if there is one, to their places in `out`."""
    if BIAS:
        sums += tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)[None, :]
    place = row[:, None] * outputs + output[None, :]
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (output < outputs)[None, :])


def options_for(x: Tensor) -> dict[str, int]:
    """Of a kernel for few rows, [rows, in]."""
    tall = max(16, triton.next_power_of_2(len(x)))
    stages = 3 if tall * x.element_size() <= 64 else 2
    return {"ROWS": tall, "OUTPUTS": OUTPUTS, "TILE": TILE, "num_warps": 4, "num_stages": stages}


class ExpandedLinear(ABC):
    """x [tokens, in] → [tokens, out]. Each weight is rounded to x's type before it is multiplied."""

    def __init__(self, codes: Tensor, shape: torch.Size, bias: Tensor | None) -> None:
        self._codes, self._bias = codes, bias
        self._outputs, self._inputs = shape

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), self._outputs)
        if not out.numel():
            return out
        if len(x) * x.element_size() <= _FEW_BYTES:
            with on_device(x):
                self._few(x, out, triton.cdiv(self._outputs, OUTPUTS))
            return out
        step = max(1, _EXPANDED_BYTES // (self._inputs * x.element_size()))
        for first in range(0, self._outputs, step):
            part = self.expanded(x.dtype, first, min(first + step, self._outputs))
            torch.mm(x, part.t(), out=out[:, first : first + step])
        return out if self._bias is None else out.add_(self._bias)

    def expanded(self, dtype: torch.dtype, first: int, stop: int) -> Tensor:
        """The weights of outputs from `first` up to `stop`, [outputs, in]."""
        out = torch.empty(stop - first, self._inputs, dtype=dtype, device=self._codes.device)
        programs = triton.cdiv(len(out), OUTPUTS), triton.cdiv(self._inputs, TILE * GROUP)
        with on_device(out):
            self._write(out, slice(first, stop), programs)
        return out

    @abstractmethod
    def _write(self, out: Tensor, here: slice, programs: tuple[int, int]) -> None:
        """The weights of the outputs `here`, into `out`."""

    @abstractmethod
    def _few(self, x: Tensor, out: Tensor, programs: int) -> None:
        """Few rows, into `out`."""
