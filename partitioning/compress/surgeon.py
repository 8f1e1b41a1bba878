"""Optimal brain surgery: one column after the other is settled, and those after it make up for the error.

The order of products and the blocks are those of GPTQ (Frantar et al., 2022), which settles on a grid, and SparseGPT
(Frantar and Alistarh, 2023), which settles on zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from partitioning.compress.grid import Grid
from partitioning.compress.recipe import CompressionError, Sparsify

_BLOCK = 128

# settle(block [rows, columns], inverse [columns, columns], i, places): what column i of a block becomes, [rows].
Settle = Callable[[Tensor, Tensor, int, Sequence[int]], Tensor]


def operate(weight: Tensor, moments: Tensor, damping: float, *, ordered: bool, settle: Settle) -> Tensor:
    """The weight [rows, cols] with every column settled. `moments` [cols, cols] is the mean of the inputs' products,
    `damping` what is added to its diagonal, as a part of its mean; `ordered`: columns with the largest inputs first."""
    diagonal = moments.diagonal()
    unused = diagonal == 0
    order = diagonal.argsort(descending=True) if ordered else torch.arange(len(diagonal), device=weight.device)
    w = weight.clone()
    w[:, unused] = 0
    w = w[:, order]
    inverse = _inverse_factor(moments[order][:, order], damping)
    with _one_thread():
        _settle_all(w, inverse, order, settle)
    settled = torch.empty_like(w)
    settled[:, order] = w
    return settled


def _settle_all(w: Tensor, inverse: Tensor, order: Tensor, settle: Settle) -> None:
    """The columns of `w`, in place."""
    places = order.tolist()
    for start in range(0, w.shape[1], _BLOCK):
        stop = min(start + _BLOCK, w.shape[1])
        block, part = w[:, start:stop].clone(), inverse[start:stop, start:stop]
        errors = torch.empty_like(block)
        for i in range(stop - start):
            settled = settle(block, part, i, places[start:stop])
            errors[:, i] = (block[:, i] - settled) / part[i, i]
            block[:, i + 1 :].addr_(errors[:, i], part[i, i + 1 :], alpha=-1)
            block[:, i] = settled
        w[:, start:stop] = block
        w[:, stop:].addmm_(errors, inverse[start:stop, stop:], alpha=-1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of operations on a column each: where others use the cores too, threads that wait for each other take
    sixty times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse, with inputs that never occur left out of account."""
    damped = moments.clone()
    diagonal = damped.diagonal()
    diagonal += torch.where(diagonal == 0, 1.0, damping * diagonal.mean())
    lower, fault = torch.linalg.cholesky_ex(damped)
    if int(fault):
        raise CompressionError(
            f"the calibration text gives inputs that depend on each other too much for a damping of {damping}: raise "
            "damping in the recipe, or give a longer or more varied --calibration"
        )
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def to_grid(grid: Grid) -> Settle:
    return lambda block, _, i, places: grid.column(block[:, i], places[i])


def to_kept(zeros: Tensor, then: Settle | None = None) -> Settle:
    """Keeps `zeros` [rows, cols], a mask, and settles the other values by `then`."""

    def settle(block: Tensor, inverse: Tensor, i: int, places: Sequence[int]) -> Tensor:
        value = block[:, i] if then is None else then(block, inverse, i, places)
        return value.masked_fill(zeros[:, places[i]], 0.0)

    return settle


class Pruning:
    """SparseGPT's choice of zeros, made for some columns at a time from what they are by then. `zeros` [rows, cols] is
    the mask of all chosen so far."""

    def __init__(self, rule: Sparsify, shape: torch.Size, device: torch.device) -> None:
        self._rule = rule
        self._every = 4 if rule.pattern == "2:4" else _BLOCK
        self.zeros = torch.zeros(shape, dtype=torch.bool, device=device)

    def __call__(self, block: Tensor, inverse: Tensor, i: int, places: Sequence[int]) -> Tensor:
        if i % self._every == 0:
            some = slice(i, i + self._every)
            merit = (block[:, some] / inverse.diagonal()[some]).square()
            self.zeros[:, places[some]] = least_of(merit, self._rule, of_all=True)
        return block[:, i].masked_fill(self.zeros[:, places[i]], 0.0)


def least_of(merit: Tensor, rule: Sparsify, *, of_all: bool = False) -> Tensor:
    """The mask [rows, cols] of what has least merit: two of every four, or a ratio of each row or `of_all` together."""
    if rule.pattern == "2:4":
        fours = merit.view(len(merit), -1, 4)
        return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, fours.argsort(dim=2)[:, :, :2], True).flatten(1)
    rows = merit.reshape(1, -1) if of_all else merit
    count = round(rows.shape[1] * rule.ratio)
    least = rows.argsort(dim=1)[:, :count]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, least, True).view(merit.shape)
