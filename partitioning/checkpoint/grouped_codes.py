"""Codes of any number of bits, in groups of any size: what packed matrices of all formats become once they are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partitioning.checkpoint.base import CheckpointError
from partitioning.plan import Span
from partitioning.quantised import GROUP, Channels, FloatCodes, Quantised

_LEAST_SCALE = 2.0**-14  # of float16 at full precision


@dataclass(frozen=True)
class GroupedCodes:
    """w[row, col] = scales[row, g] * (codes[row, col] - zeros[row, g]), where g is groups[col].

    codes [rows, cols] uint8, or floats without zeros; scales float32 [rows, all groups]; zeros the same, None where the
    codes are centred (bits 0: where they are floats); groups int64 [cols].
    """

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    groups: Tensor

    def dequantise(self) -> Tensor:
        """float32 [rows, cols]."""
        codes = self.codes.float()
        if self.zeros is not None:
            codes = codes - self.zeros[:, self.groups]
        elif self.bits:
            codes = codes - 2 ** (self.bits - 1)
        return self.scales[:, self.groups] * codes

    def blocks(self) -> Quantised | None:
        """The same as blocks of 32, each with the scale of the larger group that it is part of; None for 8 bits with
        zero points, and where scales are too small for float16."""
        if self.bits == 8 and self.zeros is not None:
            return None
        used = self.groups[::GROUP]
        scales = self.scales[:, used]
        if ((scales != 0) & (scales.abs() < _LEAST_SCALE)).any() or not scales.half().isfinite().all():
            return None
        offsets = None if self.zeros is None else (-scales * self.zeros[:, used]).half()
        return Quantised(self.bits, self.codes, scales.half(), offsets)

    def channels(self) -> Channels:
        """The same, of centred codes of 8 bits with one scale for an output."""
        return Channels(self.codes, self.scales[:, 0].contiguous())

    def floats(self) -> FloatCodes:
        """The same, of 8-bit floats; of groups larger than 32 the scale is repeated."""
        scales = self.scales if self.scales.shape[1] == 1 else self.scales[:, self.groups[::GROUP]]
        return FloatCodes(self.codes.view(torch.uint8), scales.contiguous())


def groups_of(stem: str, order: Tensor | None, cols: Span, size: int, count: int) -> Tensor:
    """[columns] The group of each column: by position, or as the file's own `order` [columns] says, if it can."""
    if order is None:
        return torch.arange(cols.start, cols.stop) // size
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < count:
        raise CheckpointError(f"{stem}: g_idx names groups beyond the {count} that there are; fetch the file again")
    return order.long()


def unpacked(words: Tensor, bits: int, places: Span) -> Tensor:
    """uint8 [rows, places]: the codes at `places` of rows that 32-bit words [rows, words] hold, lowest bits first; the
    first word has the first of these places."""
    each = 32 // bits
    codes = (words.unsqueeze(2) >> (torch.arange(each, dtype=torch.int32) * bits)) & (2**bits - 1)
    first = places.start % each
    return codes.flatten(1)[:, first : first + len(places)].to(torch.uint8).contiguous()


def words_of(bits: int, places: Span) -> Span:
    """The 32-bit words that hold these places."""
    each = 32 // bits
    return Span(places.start // each, -(-places.stop // each) if places else places.start // each)
