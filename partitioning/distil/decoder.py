"""A whole decoder in plain torch whose weights can be trained: teacher and student."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from partitioning.checkpoint import Checkpoint
from partitioning.checkpoint.tensors import model_tensors
from partitioning.compress.forward import Layer
from partitioning.model_spec import ModelSpec

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


class Decoder:
    """`tensors` are all of the model's, by Hugging Face's names; products are computed in `dtype`."""

    def __init__(
        self, spec: ModelSpec, tensors: Mapping[str, Tensor], dtype: Literal["bfloat16", "float32"], device: str
    ) -> None:
        self.spec, self.tensors, self._dtype, self._device = spec, tensors, dtype, torch.device(device)
        self._layers = []
        for number in range(spec.num_layers):
            prefix = f"model.layers.{number}."
            own = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
            self._layers.append(Layer(spec, spec.layer_windows[number], own))

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens [sequences, tokens] → what the head multiplies, float32 [sequences, tokens, hidden]."""
        hidden = F.embedding(tokens.to(self._device), self.tensors[EMBEDDING]).float()
        with self._products():
            for layer in self._layers:
                hidden = hidden + layer.out(layer.attention(layer.attention_inputs(hidden)))
                hidden = hidden + layer.down(layer.columns(layer.mlp_inputs(hidden)))
        return F.rms_norm(hidden, hidden.shape[-1:], self.tensors[NORM], self.spec.norm_eps)

    @property
    def head(self) -> Tensor:
        """[vocabulary, hidden]"""
        return self.tensors[EMBEDDING if self.spec.tied_head else HEAD]

    def _products(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == "bfloat16")


def read_decoder(checkpoint: Checkpoint, dtype: Literal["bfloat16", "float32"], device: str) -> Decoder:
    """A decoder that is not trained: its matrices are kept in `dtype`."""
    kept: torch.dtype = getattr(torch, dtype)
    tensors = {}
    for name in model_tensors(checkpoint.spec):
        tensor = checkpoint.read(name)
        tensors[name] = tensor.to(device, kept if tensor.dim() == 2 else torch.float32)
    return Decoder(checkpoint.spec, tensors, dtype, device)
