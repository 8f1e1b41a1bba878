"""What a compression reads of the larger model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from partitioning.checkpoint import Checkpoint
from partitioning.checkpoint.tensors import model_tensors


class ModelReader:
    """The tensors of a model as float32 on `device`, a layer at a time."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint, self._device = checkpoint, device
        self.spec = checkpoint.spec
        self._names = list(model_tensors(checkpoint.spec))

    def layer(self, number: int) -> dict[str, Tensor]:
        """By name within the layer."""
        prefix = f"model.layers.{number}."
        return {
            name.removeprefix(prefix): self._checkpoint.read(name).to(self._device, torch.float32)
            for name in self._names
            if name.startswith(prefix)
        }

    def embedded(self, windows: Tensor) -> Tensor:
        """[samples, tokens, hidden]"""
        return F.embedding(windows, self._checkpoint.read("model.embed_tokens.weight")).to(self._device, torch.float32)

    def head(self) -> tuple[Tensor, Tensor]:
        """The last norm [hidden], and the head [vocabulary, hidden]."""
        head = "model.embed_tokens.weight" if self.spec.tied_head else "lm_head.weight"
        norm, table = (self._checkpoint.read(name).to(self._device) for name in ("model.norm.weight", head))
        return norm.float(), table.float()

    def ends(self) -> dict[str, Tensor]:
        """All that belongs to no layer, as the file has it."""
        return {name: self._checkpoint.read(name) for name in self._names if not name.startswith("model.layers.")}
