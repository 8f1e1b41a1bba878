"""Weights in 8 or 4 bits. `Quantised`: in groups of 32 inputs, the common ground of GGUF's simple blocks and of what is
quantised while loading. `Channels`: 8 bits with one scale for an output. `FloatCodes`: floats of 8 bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from partitioning.plan import Span

GROUP = 32
_ROWS = 4096  # of a matrix at a time: what is computed on the way takes several times its floats
_SHRINK = torch.linspace(1.0, 0.75, 11)  # ranges tried for four bits, as parts of the group's whole range


class Codes(ABC):
    """A matrix [rows, cols] of integers or small floats with scales: codes uint8 of `bits`."""

    bits: int
    codes: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @abstractmethod
    def dequantise(self) -> Tensor:
        """float32 [rows, cols]."""

    @abstractmethod
    def rows(self, which: Tensor) -> Self:
        """Some of the rows."""

    @abstractmethod
    def to(self, device: torch.device) -> Self: ...

    @abstractmethod
    def like(self, other: Codes) -> bool:
        """Whether `stack` takes both."""

    @abstractmethod
    def stack(self, others: Sequence[Self]) -> Self:
        """These and the rows of others below each other."""


@dataclass(frozen=True)
class Quantised(Codes):
    """w[row, col] = scales[row, col // 32] * codes[row, col] + offsets[row, col // 32]. Without offsets the codes are
    centred: the offset is -scale * 2**(bits - 1).

    codes uint8 [rows, cols], each below 2**bits; scales and offsets float16 [rows, groups]; the last group may be
    short.
    """

    bits: int
    codes: Tensor
    scales: Tensor
    offsets: Tensor | None = None

    def dequantise(self) -> Tensor:
        cols = self.codes.shape[1]
        scales = self._by_column(self.scales)[:, :cols]
        if self.offsets is None:
            return scales * (self.codes.float() - 2 ** (self.bits - 1))
        return torch.addcmul(self._by_column(self.offsets)[:, :cols], scales, self.codes.float())

    def rows(self, which: Tensor) -> Self:
        offsets = None if self.offsets is None else self.offsets[which]
        return type(self)(self.bits, self.codes[which], self.scales[which], offsets)

    def columns(self, which: Span) -> Self:
        """Columns that begin at a whole group."""
        if which == Span(0, self.codes.shape[1]):
            return self
        if which.start % GROUP:
            raise ValueError(f"columns {which} begin inside a group of {GROUP}")
        codes = self.codes[:, which.start : which.stop].contiguous()
        groups = slice(which.start // GROUP, -(-which.stop // GROUP))
        offsets = None if self.offsets is None else self.offsets[:, groups].contiguous()
        return type(self)(self.bits, codes, self.scales[:, groups].contiguous(), offsets)

    def to(self, device: torch.device) -> Self:
        offsets = None if self.offsets is None else self.offsets.to(device)
        return type(self)(self.bits, self.codes.to(device), self.scales.to(device), offsets)

    def like(self, other: Codes) -> bool:
        return (
            isinstance(other, Quantised)
            and self.bits == other.bits
            and (self.offsets is None) == (other.offsets is None)
        )

    def stack(self, others: Sequence[Self]) -> Self:
        parts = (self, *others)
        offsets = [part.offsets for part in parts if part.offsets is not None]
        return type(self)(
            self.bits,
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts]),
            torch.cat(offsets) if offsets else None,
        )

    @staticmethod
    def _by_column(table: Tensor) -> Tensor:
        return table.float().repeat_interleave(GROUP, dim=1)


@dataclass(frozen=True)
class Channels(Codes):
    """w[row, col] = scales[row] * (codes[row, col] - 128). Products round their other side to 8 bits as well, with one
    scale for each token, so that they are sums of integers from the first input to the last (W8A8).

    codes uint8 [rows, cols]; scales float32 [rows].
    """

    codes: Tensor
    scales: Tensor
    bits = 8

    def dequantise(self) -> Tensor:
        return self.scales.unsqueeze(1) * (self.codes.float() - 128)

    def rows(self, which: Tensor) -> Self:
        return type(self)(self.codes[which], self.scales[which])

    def to(self, device: torch.device) -> Self:
        return type(self)(self.codes.to(device), self.scales.to(device))

    def like(self, other: Codes) -> bool:
        return isinstance(other, Channels)

    def stack(self, others: Sequence[Self]) -> Self:
        parts = (self, *others)
        return type(self)(torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts]))


@dataclass(frozen=True)
class FloatCodes(Codes):
    """w[row, col] = scales[row, col // 32] * f(codes[row, col]), where f takes a byte for an E4M3 float (Micikevicius
    et al., "FP8 Formats for Deep Learning", 2022). With one scale for an output it is scales[row, 0].

    codes uint8 [rows, cols], none of which is NaN; scales float32 [rows, groups of 32] or [rows, 1].
    """

    codes: Tensor
    scales: Tensor
    bits = 8

    def dequantise(self) -> Tensor:
        scales = self.scales
        if scales.shape[1] != 1:
            scales = scales.repeat_interleave(GROUP, dim=1)[:, : self.codes.shape[1]]
        return scales * self.codes.view(torch.float8_e4m3fn).float()

    def rows(self, which: Tensor) -> Self:
        return type(self)(self.codes[which], self.scales[which])

    def to(self, device: torch.device) -> Self:
        return type(self)(self.codes.to(device), self.scales.to(device))

    def like(self, other: Codes) -> bool:
        return isinstance(other, FloatCodes) and self.scales.shape[1] == other.scales.shape[1]

    def stack(self, others: Sequence[Self]) -> Self:
        parts = (self, *others)
        return type(self)(torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts]))


def quantise(weight: Tensor, bits: int) -> Quantised:
    """Rounds a matrix [rows, cols] to `bits` (8 or 4).

    Eight bits are centred, with the group's largest magnitude as range. Four bits have an offset, and the range that
    leaves the least squared error among some that clip a group's extremes a little.
    """
    first, *others = [_quantised(rows.float(), bits) for rows in torch.split(weight, _ROWS)]
    return first.stack(others) if others else first


def _quantised(weight: Tensor, bits: int) -> Quantised:
    rows, cols = weight.shape
    groups = -(-cols // GROUP)
    padded = torch.nn.functional.pad(weight, (0, groups * GROUP - cols), value=0.0)
    grouped = padded.view(rows, groups, GROUP)
    if bits == 8:
        scales = (grouped.abs().amax(dim=2) / 127).half()
        codes = _codes(grouped, scales, None, 255, 128)
        return Quantised(8, codes.flatten(1)[:, :cols].contiguous(), scales)
    low, high = grouped.amin(dim=2), grouped.amax(dim=2)
    if cols % GROUP:  # the zeros that fill the last group up are no values of it
        last = grouped[:, -1, : cols % GROUP]
        low[:, -1], high[:, -1] = last.amin(dim=1), last.amax(dim=1)
    is_value = (torch.arange(groups * GROUP) < cols).view(groups, GROUP)
    best_error: Tensor | None = None
    scales = offsets = torch.empty(0)
    for part in _SHRINK.tolist():
        middle, half = (low + high) / 2, (high - low) / 2 * part
        scale, offset = (2 * half / 15).half(), (middle - half).half()
        codes = _codes(grouped, scale, offset, 15, 0)
        made = scale.float().unsqueeze(2) * codes + offset.float().unsqueeze(2)
        error = ((made - grouped).square() * is_value).sum(dim=2)
        if best_error is None:
            best_error, scales, offsets = error, scale, offset
            continue
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        scales, offsets = torch.where(better, scale, scales), torch.where(better, offset, offsets)
    codes = _codes(grouped, scales, offsets, 15, 0)
    return Quantised(4, codes.flatten(1)[:, :cols].contiguous(), scales, offsets)


def _codes(grouped: Tensor, scales: Tensor, offsets: Tensor | None, largest: int, centre: int) -> Tensor:
    scale = scales.float().unsqueeze(2)
    shifted = grouped if offsets is None else grouped - offsets.float().unsqueeze(2)
    steps = torch.where(scale > 0, shifted / scale, 0.0)
    return (steps.round() + centre).clamp_(0, largest).to(torch.uint8)
