"""The layers. Each is built from this rank's slice of the plan and knows no other; the only sign of parallelism is the
all-reduce that ends a row-cut product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from partitioning.plan import Span
from partitioning.quantised import Codes
from workers.collectives import Group
from workers.model.batch import Batch
from workers.model.kernels import AttentionLayer, Kernels, Linear, Rotary
from workers.model.weights import Matrix


class Norm:
    """Root-mean-square norm (Zhang & Sennrich, 2019) over the last dimension."""

    def __init__(self, weight: Tensor, eps: float, kernels: Kernels) -> None:
        self.weight, self.eps, self._kernels = weight, eps, kernels

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.norm(x, self.weight, self.eps)

    def of_sum(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """x + delta, and its norm."""
        return (x, self(x)) if delta is None else self._kernels.add_norm(x, delta, self.weight, self.eps)


class Embedding:
    """Rows `vocab` of the embedding table, [tokens, hidden] in `dtype`; tokens of other ranks' rows count as zero until
    the all-reduce."""

    def __init__(self, weight: Matrix, vocab: Span, dtype: torch.dtype, group: Group) -> None:
        self._weight, self._vocab, self._dtype, self._group = weight, vocab, dtype, group

    def __call__(self, tokens: Tensor) -> Tensor:
        if self._group.size == 1:
            return self._rows(tokens)
        mine = (tokens >= self._vocab.start) & (tokens < self._vocab.stop)
        if not len(self._vocab):
            return self._group.all_reduce(self._rows(tokens[:0]).new_zeros(len(tokens), self._weight.shape[1]))
        return self._group.all_reduce(self._rows(torch.where(mine, tokens - self._vocab.start, 0)) * mine.unsqueeze(1))

    def _rows(self, tokens: Tensor) -> Tensor:
        if isinstance(self._weight, Codes):
            return self._weight.rows(tokens).dequantise().to(self._dtype)
        return F.embedding(tokens, self._weight)


class Attention:
    """Grouped-query attention over this rank's heads.

    qkv: hidden → (heads + 2 * kv_heads) * head_dim; out: heads * head_dim → hidden.
    """

    def __init__(
        self,
        qkv: Linear,
        out: Linear,
        heads: int,
        head_dim: int,
        layer: AttentionLayer,
        kernels: Kernels,
        group: Group,
    ) -> None:
        self._qkv, self._out = qkv, out
        self._heads, self._head_dim = heads, head_dim
        self._layer, self._kernels, self._group = layer, kernels, group

    def __call__(self, x: Tensor, rotary: Rotary, batch: Batch) -> Tensor:
        if not self._heads:  # more ranks than query heads: this one only takes part in the sum
            return self._group.all_reduce(torch.zeros_like(x))
        qkv = self._qkv(x).view(len(x), -1, self._head_dim)
        out = self._kernels.attention(qkv, self._layer, rotary, batch)
        return self._group.all_reduce(self._out(out.reshape(len(x), -1)))


class GatedMLP:
    """down(silu(gate(x)) * up(x)); gate_up: hidden → 2 * columns, gate's first."""

    def __init__(self, gate_up: Linear, down: Linear, kernels: Kernels, group: Group) -> None:
        self._gate_up, self._down, self._kernels, self._group = gate_up, down, kernels, group

    def __call__(self, x: Tensor) -> Tensor:
        return self._group.all_reduce(self._down(self._kernels.gated(self._gate_up(x))))


class Block:
    """One pre-norm decoder layer, x [tokens, hidden] → the same. What is still to be added to x goes along with it, so
    that the sum and the next norm are one operation."""

    def __init__(self, attention_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: GatedMLP) -> None:
        self._attention_norm, self._attention = attention_norm, attention
        self._mlp_norm, self._mlp = mlp_norm, mlp

    def __call__(self, x: Tensor, delta: Tensor | None, rotary: Rotary, batch: Batch) -> tuple[Tensor, Tensor]:
        x, normed = self._attention_norm.of_sum(x, delta)
        x, normed = self._mlp_norm.of_sum(x, self._attention(normed, rotary, batch))
        return x, self._mlp(normed)
