"""Drawing tokens together with the ranks that have the other shards: one interface, in torch and natively."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from workers.sampling.draws import Draws


class Drawing(Protocol):
    def draw(self, logits: Tensor, draws: Draws) -> Tensor:
        """The ids [rows] of the tokens drawn from this shard's logits [rows, shard] float32, which are used up, and
        those of the group's other ranks, which all call it alike. Of equal logits and scores the lowest id comes first.

        Raises:
            CollectiveStalled: another rank is gone.
        """
        ...
