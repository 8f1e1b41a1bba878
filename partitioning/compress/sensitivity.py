"""What 4 or 8 bits of one product cost the whole model: the divergence of its predictions when nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from partitioning.compress.forward import Layer
from partitioning.compress.grid import grid_of
from partitioning.compress.reader import ModelReader
from partitioning.compress.recipe import Quantise

# Matrices that are one product when they are served, and so have to be of one kind.
PRODUCTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


@dataclass(frozen=True)
class Product:
    """One product of a layer: its matrices' full names, how many weights they have, and `cost`, nats a token by which
    the predictions diverge when they alone are rounded as `rule` says."""

    stems: tuple[str, ...]
    weights: int
    cost: float


class Sensitivity:
    """Measures over `windows` [samples, tokens]. What every layer gets is kept, so a measurement runs the layers from
    the one that changes."""

    def __init__(self, reader: ModelReader, windows: Tensor) -> None:
        self._reader = reader
        self._norm, self._table = reader.head()
        self._entries = [reader.embedded(windows)]
        for number in range(reader.spec.num_layers):
            self._entries.append(self._run(number, reader.layer(number), self._entries[-1]))
        self._base = self._logprobs(self._entries[-1])

    def products(self, rule: Quantise, progress: Callable[[Iterable[int], str], Iterable[int]]) -> list[Product]:
        found = []
        for number in progress(range(self._reader.spec.num_layers), "measuring layers"):
            for names in PRODUCTS.values():
                weights = self._reader.layer(number)
                size = sum(weights[f"{name}.weight"].numel() for name in names)
                stems = tuple(f"model.layers.{number}.{name}" for name in names)
                found.append(Product(stems, size, self._cost(number, _rounded(weights, names, rule))))
        return found

    def of_all(self, rule: Quantise) -> float:
        """The divergence with every product rounded."""
        hidden = self._entries[0]
        names = [name for group in PRODUCTS.values() for name in group]
        for number in range(self._reader.spec.num_layers):
            hidden = self._run(number, _rounded(self._reader.layer(number), names, rule), hidden)
        return self._divergence(hidden)

    def _cost(self, number: int, weights: dict[str, Tensor]) -> float:
        hidden = self._run(number, weights, self._entries[number])
        for later in range(number + 1, self._reader.spec.num_layers):
            hidden = self._run(later, self._reader.layer(later), hidden)
        return self._divergence(hidden)

    def _run(self, number: int, weights: dict[str, Tensor], hidden: Tensor) -> Tensor:
        layer = Layer(self._reader.spec, self._reader.spec.layer_windows[number], weights)
        hidden = hidden + layer.out(layer.attention(layer.attention_inputs(hidden)))
        return hidden + layer.down(layer.columns(layer.mlp_inputs(hidden)))

    def _logprobs(self, hidden: Tensor) -> Tensor:
        """float16 [tokens, vocabulary]"""
        x = F.rms_norm(hidden, self._norm.shape, self._norm, self._reader.spec.norm_eps).flatten(0, 1)
        return torch.cat([F.linear(part, self._table).log_softmax(dim=1).half() for part in torch.split(x, 256)])

    def _divergence(self, hidden: Tensor) -> float:
        """Kullback-Leibler, of the changed predictions from the model's own, in nats a token."""
        total = 0.0
        for base, own in zip(torch.split(self._base, 256), torch.split(self._logprobs(hidden), 256), strict=True):
            total += float((base.float().exp() * (base.float() - own.float())).sum())
        return max(0.0, total / len(self._base))


def _rounded(weights: dict[str, Tensor], names: Iterable[str], rule: Quantise) -> dict[str, Tensor]:
    for name in names:
        weight = weights[f"{name}.weight"]
        weights[f"{name}.weight"] = grid_of(weight, rule, torch.float32).rounded(weight)
    return weights
