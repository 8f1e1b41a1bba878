"""The copy of a head in few bits that the native engine finds the likeliest tokens with (csrc/screen.h): which it is,
and what it takes."""

from __future__ import annotations

from dataclasses import dataclass

_GROUP = 32  # as in partitioning/quantised.py, which needs torch
SCREENED_ROWS = 4  # for so many at once
PARTS = 3  # of an output's weights: how far off the copy of each is, is a float
# Limits widen with the root of the inputs; up to here 4 bits are enough if rows are turned, and turning them is quick.
_MOST_TURNED = 1024
_FEWEST_OUTPUTS = 16  # for each input, for turning to be little beside reading the copy
_COMPUTED = 0.12  # of the head, beside a copy of turned rows: SmolLM2 on English text


@dataclass(frozen=True)
class ScreenShape:
    outputs: int
    inputs: int
    bits: int  # of the copy, in groups of 32
    turned: bool  # rows, to where the head's differ most

    @property
    def columns(self) -> int:
        """Inputs of the copy, which turned rows fill up to whole groups and have a group more of."""
        return -(-self.inputs // _GROUP) * _GROUP + _GROUP if self.turned else self.inputs

    @property
    def bytes(self) -> int:
        turn = 4 * (self.columns + 1) * self.inputs if self.turned else 0
        return round(self.outputs * (self.columns * (self.bits + 0.5) / 8 + 4 * PARTS) + turn)

    def bytes_read(self, size: float) -> float:
        """To find the best outputs of a head of `size` bytes a parameter."""
        computed = _COMPUTED * self.outputs * self.inputs * size if self.turned else 0
        return self.bytes + computed


def screen_shape(outputs: int, inputs: int, size: float) -> ScreenShape | None:
    """Of a head of `size` bytes a parameter; None where a copy would not be read more quickly."""
    if size < 1:
        return None
    if inputs <= _MOST_TURNED and outputs >= _FEWEST_OUTPUTS * inputs:
        return ScreenShape(outputs, inputs, 4, turned=True)
    if size < 2:
        return None
    return ScreenShape(outputs, inputs, 8, turned=False)
