"""Weights on a grid of integers or 8-bit floats, and how `compressed-tensors` stores them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partitioning.compress.recipe import Quantise

_FLOAT = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT).max
_NARROWER = torch.linspace(1.0, 0.6, 21).tolist()  # ranges tried, as parts of the whole


@dataclass(frozen=True)
class Grid:
    """w = scales[row, col // group] * (code - zeros[row, col // group]); codes are from -2**(bits - 1) to
    2**(bits - 1) - 1, or E4M3 floats where `bits` is None. Scales and zero points float32 [rows, groups], as they will
    be stored."""

    bits: int | None
    group: int
    scales: Tensor
    zeros: Tensor

    def column(self, values: Tensor, place: int) -> Tensor:
        """The nearest values of the grid to column `place`, [rows]."""
        scales, zeros = self.scales[:, place // self.group], self.zeros[:, place // self.group]
        return scales * (self._codes(values, scales, zeros) - zeros)

    def codes(self, weight: Tensor) -> Tensor:
        """int8 or float8_e4m3fn [rows, cols]"""
        codes = self._codes(weight, self._wide(self.scales), self._wide(self.zeros))
        return codes.to(_FLOAT if self.bits is None else torch.int8)

    def values(self, codes: Tensor) -> Tensor:
        return self._wide(self.scales) * (codes.float() - self._wide(self.zeros))

    def rounded(self, weight: Tensor) -> Tensor:
        """The nearest values of the grid, [rows, cols]."""
        return self.values(self.codes(weight))

    def _codes(self, values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        if self.bits is None:
            return (values / scales).clamp(-_LARGEST, _LARGEST).to(_FLOAT).float()
        half = 2 ** (self.bits - 1)
        return (values / scales + zeros).round().clamp(-half, half - 1)

    def _wide(self, table: Tensor) -> Tensor:
        return table.repeat_interleave(self.group, dim=1)


def grid_of(weight: Tensor, rule: Quantise, stored: torch.dtype, importance: Tensor | None = None) -> Grid:
    """The grid over each group's range, or over the part of it that leaves the least squared error (`rule.search`).

    weight float32 [rows, cols]; scales are rounded to `stored`, the type in which they will be. importance [cols]: what
    a column's squared error counts.
    """
    bits = None if rule.type == "float" else rule.bits
    group = rule.group(weight.shape[1])
    grouped = weight.view(len(weight), -1, group)
    least: Tensor | None = None
    scales = zeros = weight.new_empty(0)
    for part in _NARROWER if rule.search else (1.0,):
        scale, zero = _range(grouped, rule, part)
        scale = scale.to(stored).float()
        scale = torch.where(scale > 0, scale, 1.0)  # float16 has no scale for the least of values
        made = Grid(bits, group, scale, zero)
        error = (made.rounded(weight) - weight).square()
        if importance is not None:
            error *= importance
        error = error.view(grouped.shape).sum(dim=2)
        if least is None:
            least, scales, zeros = error, scale, zero
        else:
            better = error < least
            least = torch.where(better, error, least)
            scales, zeros = torch.where(better, scale, scales), torch.where(better, zero, zeros)
    return Grid(bits, group, scales, zeros)


def rounded_tokens(x: Tensor, rule: Quantise) -> Tensor:
    """Activations [..., inputs] as products see them: where the rule says so, in 8 bits with one scale for a token."""
    if rule.activations != 8:
        return x
    floats = rule.type == "float"
    most = x.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(most > 0, most / (_LARGEST if floats else 127), 1.0)
    steps = x / scale
    return (steps.clamp(-_LARGEST, _LARGEST).to(_FLOAT).float() if floats else steps.round()) * scale


def _range(grouped: Tensor, rule: Quantise, part: float) -> tuple[Tensor, Tensor]:
    """Scales and zero points [rows, groups] of a part of each group's range, which has zero in it."""
    steps = 2 * _LARGEST if rule.type == "float" else 2**rule.bits - 1
    low, high = part * grouped.amin(dim=2).clamp(max=0), part * grouped.amax(dim=2).clamp(min=0)
    if rule.symmetric:
        scale = 2 * torch.maximum(-low, high) / steps
        return torch.where(scale > 0, scale, 1.0), torch.zeros_like(scale)
    scale = (high - low) / steps
    scale = torch.where(scale > 0, scale, 1.0)
    half = 2 ** (rule.bits - 1)
    return scale, (-half - low / scale).round().clamp(-half, half - 1)


def stored_tensors(stem: str, weight: Tensor, grid: Grid, rule: Quantise, stored: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a matrix whose values are on `grid`."""
    codes = grid.codes(weight)
    made = {f"{stem}.weight_scale": grid.scales.to(stored)}
    if rule.activations == 8 or rule.type == "float":
        return made | {f"{stem}.weight": codes}
    made |= {f"{stem}.weight_packed": _words(codes, rule.bits), f"{stem}.weight_shape": torch.tensor(weight.shape)}
    if not rule.symmetric:
        made[f"{stem}.weight_zero_point"] = _words(grid.zeros.to(torch.int8).T, rule.bits).T.contiguous()
    return made


def _words(codes: Tensor, bits: int) -> Tensor:
    """int32 [rows, words] of signed codes [rows, cols], the first in the lowest bits."""
    each = 32 // bits
    unsigned = codes.int() + 2 ** (bits - 1)
    padded = torch.nn.functional.pad(unsigned, (0, -codes.shape[1] % each)).view(len(codes), -1, each)
    return (padded << (bits * torch.arange(each, dtype=torch.int32, device=codes.device))).sum(2, dtype=torch.int32)
