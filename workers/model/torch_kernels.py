"""What the layers compute with, in torch, on any of its devices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from partitioning.plan import Plan, RankPlan
from partitioning.quantised import Codes
from partitioning.rotary import rotate
from workers.model.attention import AttentionPlan, attend, attention_plan
from workers.model.batch import Batch, Sequences
from workers.model.kernels import AttentionLayer, Linear, Rotary
from workers.model.readers import Readers
from workers.model.weights import Matrix


class TorchKernels:
    """See `Kernels`."""

    def __init__(self, plan: Plan, rank: RankPlan, device: torch.device) -> None:
        self._readers = Readers(rank.readers(plan.model.group_size), device)
        self._block_size = plan.kv_block_size
        self._windows = frozenset(plan.model.layer_windows[rank.layers.start : rank.layers.stop])

    def linear(self, weight: Matrix, bias: Tensor | None) -> Linear:
        if isinstance(weight, Codes):
            return lambda x: F.linear(x, weight.dequantise().to(x.dtype), bias)
        return lambda x: F.linear(x, weight, bias)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x + delta
        return x, self.norm(x, weight, eps)

    def gated(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def plan(self, sequences: Sequences) -> AttentionPlan:
        return attention_plan(sequences, self._block_size, self._windows)

    def attention(self, qkv: Tensor, layer: AttentionLayer, rotary: Rotary, batch: Batch) -> Tensor:
        heads, kv_heads = self._readers.heads, self._readers.kv_heads
        qk, v = torch.split(qkv, [heads + kv_heads, kv_heads], dim=1)
        if layer.norms is not None:
            q, k = torch.split(qk, [heads, kv_heads], dim=1)
            q_weight, k_weight, eps = layer.norms
            qk = torch.cat([self.norm(q, q_weight, eps), self.norm(k, k_weight, eps)], dim=1)
        q, k = torch.split(rotate(qk, *rotary), [heads, kv_heads], dim=1)
        # A prompt looks at its keys and values as they are kept, however it is cut into chunks.
        k, v = layer.cache.write(batch.cache_slots, k, v)
        return self._readers.chosen(attend(self._readers.evened(q), k, v, layer.cache, batch.attention, layer.window))

    def graphs(self, *_: object) -> None:
        return None
