"""This rank's part of the decoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.model.batch import Batch
from workers.model.kernels import Linear
from workers.model.layers import Block, Embedding, Norm
from workers.model.rope import RotaryTable


@dataclass(frozen=True)
class Decoder:
    """The layers of one stage; `embedding` on the first stage only, `norm` and `head` on the last only."""

    rotary: RotaryTable
    blocks: tuple[Block, ...]
    embedding: Embedding | None
    norm: Norm | None
    head: Linear | None

    def hidden(self, x: Tensor | None, batch: Batch, layers: int | None = None) -> Tensor:
        """x [tokens, hidden], on the first stage None, through this stage's layers, or so many of the first."""
        if x is None:
            assert self.embedding is not None
            x = self.embedding(batch.tokens)
        rotary = self.rotary.at(batch.positions)
        delta = None
        for block in self.blocks[:layers]:
            x, delta = block(x, delta, rotary, batch)
        return x if delta is None else x + delta

    def logits(self, x: Tensor) -> Tensor:
        """x [samples, hidden] → [samples, this rank's vocabulary rows], float32."""
        assert self.norm is not None
        assert self.head is not None
        return self.head(self.norm(x)).float()
