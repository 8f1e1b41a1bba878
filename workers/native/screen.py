"""A head's copy in 8 bits, by which most of its outputs are ruled out: see csrc/screen.h."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_void_p

import torch
from torch import Tensor

from workers.native.weights import EIGHT_BITS, LANES, NativeWeight, padded_to_lanes

_ROUNDED_UP = 1 + 1e-5


class ScreenOf(Structure):
    """Lives no longer than the Screen that it is of."""

    _fields_ = (("copy", c_void_p), ("lost", c_void_p), ("length", c_void_p))


class Screen:
    """Of a head [outputs, inputs] in float32 or bfloat16. `lost` and `length` say how far off the copy is at most."""

    def __init__(self, native: ctypes.CDLL, head: Tensor) -> None:
        outputs, inputs = head.shape
        self._copy = NativeWeight(native, EIGHT_BITS, outputs, inputs, panels=-(-outputs // LANES))
        lost, kept = torch.empty(2, outputs)
        fill = native.phx_weight_round_f32 if head.dtype == torch.float32 else native.phx_weight_round_bf16
        values = head.contiguous()
        fill(self._copy.address, values.data_ptr(), outputs, lost.data_ptr(), kept.data_ptr())
        self.lost, self.length = (padded_to_lanes(part * _ROUNDED_UP) for part in (lost, lost + kept))

    @property
    def native(self) -> ScreenOf:
        return ScreenOf(self._copy.address, self.lost.data_ptr(), self.length.data_ptr())
