"""A head's copy in few bits, by which most of its outputs are ruled out: see csrc/screen.h."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import Structure, c_float, c_long, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from partitioning.quantised import GROUP, Quantised
from partitioning.screening import PARTS, ScreenShape, screen_shape
from workers.model.weights import Matrix
from workers.native.weights import EIGHT_BITS, FOUR_BITS, LANES, NativeWeight, padded_to_lanes

_ROWS = 4096  # of the head at a time
_SAMPLED = 8  # rows of the head for each input, from which its directions are found
_KEPT = {4: 16.0, 8: 256.0}  # a copy is about so many times as long as what it loses, by bits
_ROUNDED_UP = 1 + 1e-5


class ScreenOf(Structure):
    """Lives no longer than the Screen that it is of."""

    _fields_ = (
        ("copy", c_void_p),
        ("turn", c_void_p),
        ("common", c_float),
        ("ends", c_long * PARTS),
        ("lost", c_void_p),
        ("kept", c_float * PARTS),
    )


class Screen:
    """Of a head [outputs, inputs]. `lost` [parts, outputs filled up to 16] says how far off the copy is at most.

    Turned rows have inputs in front, of zeros, up to a multiple of 32, and the last 32 once more, for what rounding has
    taken from their weights: `turn` [turned inputs + 1, inputs], whose last row is what all rows have in common.
    """

    @classmethod
    def of(cls, native: ctypes.CDLL, head: Matrix) -> Screen | None:
        """None where a head is read as quickly as a copy."""
        if isinstance(head, Tensor):
            size = float(head.element_size())
        elif isinstance(head, Quantised):
            size = head.bits / 8 + 2 / GROUP
        else:
            return None
        shape = screen_shape(head.shape[0], head.shape[1], size)
        return None if shape is None else cls(native, head, shape)

    def __init__(self, native: ctypes.CDLL, head: Matrix, shape: ScreenShape) -> None:
        outputs, inputs = head.shape
        self.shape = shape
        turn = _Turn.of(head) if shape.turned else None
        self.turn = None if turn is None else turn.table()
        copied = inputs if turn is None else turn.directions.shape[1]
        kind = FOUR_BITS if shape.bits == 4 else EIGHT_BITS
        self._copy = NativeWeight(native, kind, outputs, shape.columns, panels=-(-outputs // LANES))
        ends, kept = _parts(copied, shape)
        lost = []
        for begin, rows in _rows(head):
            slack = torch.zeros(len(rows))
            if turn is not None:
                rows = rows - turn.common
                slack = rows.norm(dim=1) * inputs * 2**-22  # of turning in float32
                rows = rows @ turn.directions
            values = rows.contiguous()
            changed, held = torch.empty(2, len(rows), -(-copied // GROUP))
            native.phx_weight_round(
                self._copy.address,
                values.data_ptr(),
                len(rows),
                copied,
                begin // LANES,
                changed.data_ptr(),
                held.data_ptr(),
            )
            lost.append(torch.stack(list(_limits(changed, held, ends, kept, slack))))
        self.lost = torch.stack([padded_to_lanes(part) for part in torch.cat(lost, dim=1) * _ROUNDED_UP])
        self.native = ScreenOf(
            copy=self._copy.address,
            turn=None if self.turn is None else self.turn.data_ptr(),
            common=0.0 if turn is None else float(turn.common.norm()) * _ROUNDED_UP,
            ends=(c_long * PARTS)(*ends),
            lost=self.lost.data_ptr(),
            kept=(c_float * PARTS)(*kept),
        )


@dataclass(frozen=True)
class _Turn:
    """`directions` [inputs, zeros and inputs]: an orthonormal basis, from where rows differ most from one another to
    where they do least (Pearson, 1901), behind zeros up to a whole group. `common` [inputs]: the mean row."""

    directions: Tensor
    common: Tensor

    @classmethod
    def of(cls, head: Matrix) -> _Turn:
        """Any would do: some of the rows are asked."""
        outputs, inputs = head.shape
        rows = _some(head, torch.arange(0, outputs, max(1, outputs // (_SAMPLED * inputs))))
        common = rows.mean(dim=0)
        rows = rows - common
        _, vectors = torch.linalg.eigh((rows.T @ rows).double())
        return cls(torch.nn.functional.pad(vectors.flip(1).float(), (-inputs % GROUP, 0)), common)

    def table(self) -> Tensor:
        """See `Screen`; filled up to 16 inputs."""
        rows = self.directions.T
        rows = torch.cat([rows, rows[-GROUP:], self.common.unsqueeze(0)])
        return torch.nn.functional.pad(rows, (0, -rows.shape[1] % LANES)).contiguous()


def _rows(head: Matrix) -> Iterator[tuple[int, Tensor]]:
    """Rows in float32, some at a time, with the number of the first."""
    for begin in range(0, head.shape[0], _ROWS):
        yield begin, _some(head, torch.arange(begin, min(begin + _ROWS, head.shape[0])))


def _some(head: Matrix, which: Tensor) -> Tensor:
    return head[which].float() if isinstance(head, Tensor) else head.rows(which).dequantise()


def _parts(inputs: int, shape: ScreenShape) -> tuple[list[int], list[float]]:
    """Where parts end, and how long copies are beside what they lose. The last part of turned rows is one group, held
    twice."""
    groups, usual = -(-inputs // GROUP), _KEPT[shape.bits]
    if not shape.turned:
        return [part * groups // PARTS * GROUP for part in range(1, PARTS + 1)], [usual] * PARTS
    return [groups // 2 * GROUP, (groups - 1) * GROUP, groups * GROUP], [usual, usual, usual**2]


def _limits(changed: Tensor, held: Tensor, ends: list[int], kept: list[float], slack: Tensor) -> Iterator[Tensor]:
    first = 0
    for end, times in zip(ends, kept, strict=True):
        groups = slice(first, end // GROUP)
        lost = changed[:, groups].sum(dim=1).sqrt() + slack
        yield torch.maximum(lost, held[:, groups].sum(dim=1).sqrt() / times)
        first = end // GROUP
