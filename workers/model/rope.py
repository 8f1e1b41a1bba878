"""The rotary embedding's angles where a batch looks them up."""

from __future__ import annotations

import torch
from torch import Tensor

from partitioning.model_spec import RopeSpec
from partitioning.rotary import rotary_angles


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
