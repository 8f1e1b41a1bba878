"""Builds a rank's decoder in torch from its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from partitioning.plan import Plan, RankPlan
from partitioning.quantised import Codes
from workers.collectives import Group
from workers.model.attention import KVCache
from workers.model.decoder import Decoder
from workers.model.kept_rows import FloatRows, Int8Rows
from workers.model.kernels import AttentionLayer, Kernels, Linear
from workers.model.layers import Attention, Block, Embedding, GatedMLP, Norm
from workers.model.rope import RotaryTable
from workers.model.sparse import without_zeros
from workers.model.weights import LayerWeights, Matrix, WeightReader, stacked


def load_decoder(
    weights: WeightReader, plan: Plan, rank: RankPlan, kernels: Kernels, group: Group, max_position: int,
    device: torch.device,
) -> Decoder:  # fmt: skip
    """The decoder of `rank` of `plan`; `max_position` is the longest sequence that will be run."""
    return _Loader(plan, rank, kernels, group, device).decoder(weights, max_position)


class _Loader:
    def __init__(self, plan: Plan, rank: RankPlan, kernels: Kernels, group: Group, device: torch.device) -> None:
        self._plan, self._rank, self._kernels, self._group, self._device = plan, rank, kernels, group, device
        self._dtype: torch.dtype = getattr(torch, plan.dtype)

    def decoder(self, weights: WeightReader, max_position: int) -> Decoder:
        spec, ends = self._plan.model, weights.ends()
        embedding = None if ends.embedding is None else self._matrix(ends.embedding)
        head = embedding
        if ends.head is not None and ends.head is not ends.embedding:
            head = self._matrix(ends.head)
        return Decoder(
            rotary=RotaryTable(spec.rope, spec.head_dim, max_position, self._dtype, self._device),
            blocks=tuple(self._block(layer) for layer in weights.layers()),
            embedding=None if embedding is None else Embedding(embedding, self._rank.vocab, self._dtype, self._group),
            norm=None if ends.norm is None else self._norm(ends.norm),
            head=None if ends.head is None or head is None else self._kernels.linear(head, None),
        )

    def _block(self, layer: LayerWeights) -> Block:
        norms = None
        if layer.head_norms is not None:
            norms = (self._on(layer.head_norms[0]), self._on(layer.head_norms[1]), self._plan.model.norm_eps)
        return Block(
            attention_norm=self._norm(layer.attention_norm),
            attention=Attention(
                qkv=self._linear(layer.qkv, layer.qkv_bias),
                out=self._linear(layer.out),
                heads=len(self._rank.heads),
                head_dim=self._plan.model.head_dim,
                layer=AttentionLayer(norms, self._cache(), layer.window),
                kernels=self._kernels,
                group=self._group,
            ),
            mlp_norm=self._norm(layer.mlp_norm),
            mlp=GatedMLP(
                self._linear(stacked([layer.gate, layer.up])), self._linear(layer.down), self._kernels, self._group
            ),
        )

    def _cache(self) -> KVCache:
        plan = self._plan
        kind = Int8Rows if plan.kv_cache == "int8" else FloatRows
        keys, values = (
            kind(
                plan.kv_blocks + 1,  # the last is nobody's: see decode_graphs
                plan.kv_block_size,
                len(self._rank.kv_heads),
                plan.model.head_dim,
                self._dtype,
                self._device,
            )
            for _ in range(2)
        )
        return KVCache(keys, values)

    def _norm(self, weight: Tensor) -> Norm:
        return Norm(self._on(weight), self._plan.model.norm_eps, self._kernels)

    def _linear(self, matrix: Matrix, bias: Tensor | None = None) -> Linear:
        kept = self._matrix(matrix)
        kept = kept if isinstance(kept, Codes) else without_zeros(kept)
        return self._kernels.linear(kept, None if bias is None else self._on(bias))

    def _matrix(self, matrix: Matrix) -> Matrix:
        return matrix.to(self._device) if isinstance(matrix, Codes) else self._on(matrix)

    def _on(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype)
