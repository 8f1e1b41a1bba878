"""AWQ (Lin et al., "Activation-aware weight quantization", 2023): inputs that are large get more of the grid, by scales
that the operation before takes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from partitioning.compress.grid import grid_of
from partitioning.compress.recipe import Quantise

_STEPS = 20
_LEAST = 1e-4


def smoothing(
    weights: Sequence[Tensor],
    inputs: Tensor,
    rule: Quantise,
    stored: torch.dtype,
    loss: Callable[[Sequence[Tensor], Tensor], float],
) -> Tensor:
    """The scales [inputs] for which `weights * scales`, rounded and divided by them again, lose least.

    weights [outputs, inputs] of products that multiply the same inputs, whose mean magnitude `inputs` [inputs] is;
    `loss` says what the model loses with other weights in their place, if the scales divide the inputs before they are
    rounded.
    """
    plain = rule.model_copy(update={"search": False})
    best, least = torch.ones_like(inputs), float("inf")
    for scales in _tried(weights, inputs, rule):
        scaled = [weight * scales for weight in weights]
        lost = loss([grid_of(weight, plain, stored).rounded(weight) / scales for weight in scaled], scales)
        if lost < least:
            best, least = scales, lost
    return best


def _tried(weights: Sequence[Tensor], inputs: Tensor, rule: Quantise) -> Iterator[Tensor]:
    """Powers of the inputs' magnitude, over the remaining power of the weights' (as in the authors' code)."""
    yield torch.ones_like(inputs)
    share = _shares(weights, rule)
    for step in range(_STEPS):
        ratio = step / (_STEPS - 1)
        scales = (inputs**ratio / (share ** (1 - ratio) + _LEAST)).clamp(min=_LEAST)
        yield scales / (scales.max() * scales.min()).sqrt()


def _shares(weights: Sequence[Tensor], rule: Quantise) -> Tensor:
    """[inputs] How large an input's weights are beside the largest of their groups, on average."""
    every = torch.cat(list(weights)).abs()
    grouped = every.view(len(every), -1, rule.group(every.shape[1]))
    return (grouped / (grouped.amax(dim=2, keepdim=True) + 1e-6)).view(every.shape).mean(dim=0)
