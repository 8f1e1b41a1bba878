"""Weights in the native layout: see csrc/weight.h."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from partitioning.quantised import Channels, Codes, Quantised
from workers.model.weights import Matrix

LANES = 16  # outputs of a panel
_FORMATS = {torch.float32: 0, torch.bfloat16: 1}
EIGHT_BITS, FOUR_BITS = 2, 3
_CODES = {8: EIGHT_BITS, 4: FOUR_BITS}
_CHANNELS = 4
_MOST_KEPT = 11 / 16  # of a sparse panel's values: a bit for each and these are three quarters of all


class NativeWeight:
    """Room for panels of one format; lives as long as this object."""

    def __init__(
        self,
        native: ctypes.CDLL,
        kind: int,
        outputs: int,
        inputs: int,
        panels: int,
        kept: int = 0,
        offsets: bool = False,
    ) -> None:
        self._native = native
        self.address: int | None = native.phx_weight_new(kind, outputs, inputs, panels, kept, offsets)
        if self.address is None:
            raise MemoryError(f"no memory for a weight of {panels * LANES} × {inputs} values")

    def __del__(self) -> None:
        if getattr(self, "address", None) is not None:
            self._native.phx_weight_free(self.address)


class PackedWeight(NativeWeight):
    """A matrix, or several of one kind whose panels of 16 outputs take turns. One of bfloat16 may be `sparse`: then
    zeros are left out where that is quick and they are many; `kept` is how many values a panel then has room for, else
    0."""

    def __init__(self, native: ctypes.CDLL, parts: Sequence[Matrix], sparse: bool = True) -> None:
        first = parts[0]
        outputs, inputs = first.shape
        panels = -(-outputs // LANES) * len(parts)
        offsets = isinstance(first, Quantised) and first.offsets is not None
        self.kept = _kept(parts) if sparse and native.phx_skips_zeros() else 0
        super().__init__(native, _kind(first), outputs * len(parts), inputs, panels, self.kept, offsets)
        for number, part in enumerate(parts):
            assert part.shape == first.shape
            self._pack(part, number, len(parts))

    def _pack(self, part: Matrix, first: int, step: int) -> None:
        rows, native = part.shape[0], self._native
        if isinstance(part, Quantised):
            tables = [part.codes, part.scales] + ([] if part.offsets is None else [part.offsets])
            codes, scales, *offsets = (table.contiguous() for table in tables)
            native.phx_weight_pack_codes(
                self.address,
                codes.data_ptr(),
                scales.data_ptr(),
                offsets[0].data_ptr() if offsets else None,
                rows,
                first,
                step,
            )
        elif isinstance(part, Channels):
            codes, scales = part.codes.contiguous(), part.scales.contiguous()
            native.phx_weight_pack_channels(self.address, codes.data_ptr(), scales.data_ptr(), rows, first, step)
        else:
            assert isinstance(part, Tensor)
            pack = native.phx_weight_pack_f32 if part.dtype == torch.float32 else native.phx_weight_pack_bf16
            values = part.contiguous()
            pack(self.address, values.data_ptr(), rows, first, step)


def _kind(matrix: Matrix) -> int:
    if isinstance(matrix, Codes):
        return _CHANNELS if isinstance(matrix, Channels) else _CODES[matrix.bits]
    return _FORMATS[matrix.dtype]


def _kept(parts: Sequence[Matrix]) -> int:
    """The most values beside zeros that a panel has; 0 where leaving zeros out would save too little."""
    most = 0
    for part in parts:
        if isinstance(part, Codes) or part.dtype != torch.bfloat16:
            return 0
        for begin in range(0, part.shape[0], LANES):
            most = max(most, int(part[begin : begin + LANES].count_nonzero()))
            if most > _MOST_KEPT * LANES * part.shape[1]:
                return 0
    return max(most, 1)


def padded_to_lanes(vector: Tensor) -> Tensor:
    """float32, filled up with zeros to whole panels."""
    return torch.nn.functional.pad(vector.float(), (0, -len(vector) % LANES)).contiguous()
