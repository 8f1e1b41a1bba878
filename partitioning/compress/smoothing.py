"""AWQ (Lin et al., "Activation-aware weight quantization", 2023): inputs that are large get more of the grid, by scales
that the operation before takes back."""

from __future__ import annotations

import torch
from torch import Tensor

from partitioning.compress.grid import grid_of
from partitioning.compress.recipe import Quantise

_STEPS = 20
_LEAST = 1e-4


def smoothing(weight: Tensor, moments: Tensor, rule: Quantise, stored: torch.dtype) -> Tensor:
    """The scales [inputs] for which `weight * scales`, rounded and divided by them again, changes the output least.

    Of powers of the inputs' root mean square, as the paper's of their mean magnitude. weight [outputs, inputs];
    moments [inputs, inputs], the mean of the inputs' products.
    """
    size = moments.diagonal().sqrt().clamp(min=_LEAST)
    best, least = torch.ones_like(size), float("inf")
    for step in range(_STEPS):
        scales = size ** (step / _STEPS)
        scales = scales / (scales.max() * scales.min()).sqrt()
        grid = grid_of(weight * scales, rule, stored)
        change = grid.values(grid.codes(weight * scales)) / scales - weight
        error = float(((change @ moments) * change).sum())
        if error < least:
            best, least = scales, error
    return best
