"""Rotary position embedding (Su et al., "RoFormer", 2021), in the half-split layout of Hugging Face checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor

from partitioning.model_spec import RopeSpec


def rotary_angles(rope: RopeSpec, head_dim: int, max_position: int) -> tuple[Tensor, Tensor]:
    """cos and sin of every position and pair, float32 [max_position, head_dim / 2] each."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = rope.theta**-exponents  # [head_dim / 2]
    if rope.freq_factors:
        frequencies = frequencies / torch.tensor(rope.freq_factors)
    angles = torch.outer(torch.arange(max_position, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [..., head_dim]; the sign of the first half is in `sin`."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin
