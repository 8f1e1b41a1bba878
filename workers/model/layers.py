"""The layers. Each is built from this rank's slice of the plan and knows no other; the only sign of parallelism is the
all-reduce that ends a row-cut product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from partitioning.plan import Span
from partitioning.quantised import Codes
from partitioning.rotary import rotate
from workers.collectives import Group
from workers.model.attention import KVCache, attend
from workers.model.batch import Batch
from workers.model.readers import Readers
from workers.model.weights import Matrix


class Norm:
    """Root-mean-square norm (Zhang & Sennrich, 2019) over the last dimension."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight, self._eps = weight, eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self._weight.shape, self._weight, self._eps)


class Linear:
    """x [tokens, in] → [tokens, out], with the weight [out, in]; a quantised one is expanded at each call."""

    def __init__(self, weight: Matrix, bias: Tensor | None = None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        weight = self._weight
        return F.linear(x, weight.dequantise().to(x.dtype) if isinstance(weight, Codes) else weight, self._bias)


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
    """Grouped-query attention over this rank's heads, of which `readers[i]` read KV head i.

    qkv [(heads + 2 * kv_heads) * head_dim, hidden]; out [hidden, heads * head_dim].
    """

    def __init__(
        self,
        qkv: Linear,
        out: Linear,
        norms: tuple[Norm, Norm] | None,
        readers: Readers,
        head_dim: int,
        window: int,
        cache: KVCache,
        group: Group,
    ) -> None:
        self._qkv, self._out, self._norms = qkv, out, norms
        self._readers, self._head_dim = readers, head_dim
        self._window, self._cache, self._group = window, cache, group

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        if not self._readers.heads:  # more ranks than query heads: this one only takes part in the sum
            return self._group.all_reduce(torch.zeros_like(x))
        heads, kv_heads = self._readers.heads, self._readers.kv_heads
        qkv = self._qkv(x).view(len(x), heads + 2 * kv_heads, self._head_dim)
        qk, v = torch.split(qkv, [heads + kv_heads, kv_heads], dim=1)
        if self._norms is not None:
            q, k = torch.split(qk, [heads, kv_heads], dim=1)
            qk = torch.cat([self._norms[0](q), self._norms[1](k)], dim=1)
        q, k = torch.split(rotate(qk, *rotary), [heads, kv_heads], dim=1)
        q = self._readers.evened(q)
        out = self._readers.chosen(attend(q, k, v, self._cache, batch, self._window))
        return self._group.all_reduce(self._out(out.reshape(len(x), -1)))


class GatedMLP:
    """down(silu(gate(x)) * up(x)); gate_up [2 * columns, hidden] holds gate's rows, then up's."""

    def __init__(self, gate_up: Linear, down: Linear, group: Group) -> None:
        self._gate_up, self._down, self._group = gate_up, down, group

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self._gate_up(x).chunk(2, dim=-1)
        return self._group.all_reduce(self._down(F.silu(gate) * up))


class Block:
    """One pre-norm decoder layer: x [tokens, hidden] → the same."""

    def __init__(self, attention_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: GatedMLP) -> None:
        self._attention_norm, self._attention = attention_norm, attention
        self._mlp_norm, self._mlp = mlp_norm, mlp

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        x = x + self._attention(self._attention_norm(x), rotary, batch)
        return x + self._mlp(self._mlp_norm(x))
