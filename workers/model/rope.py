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


class RotaryTable:
    """cos and sin of every position, [max_position, head_dim], made once in float32."""

    def __init__(
        self, rope: RopeSpec, head_dim: int, max_position: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        cos, sin = rotary_angles(rope, head_dim, max_position)
        self._cos = torch.cat([cos, cos], dim=-1).to(device, dtype)
        self._sin = torch.cat([-sin, sin], dim=-1).to(device, dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin for each token, [tokens, 1, head_dim]."""
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [tokens, heads, head_dim]; the sign of the first half is in `sin`."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin
