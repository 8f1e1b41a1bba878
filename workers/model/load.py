"""Builds a rank's decoder by reading its slices, and nothing else, from the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from partitioning.checkpoint import Checkpoint
from partitioning.plan import Plan, RankPlan, Span
from workers.collectives import Group
from workers.model.attention import KVCache
from workers.model.decoder import Decoder
from workers.model.layers import Attention, Block, Embedding, GatedMLP, Linear, Norm
from workers.model.rope import RotaryTable


def load_decoder(
    checkpoint: Checkpoint, plan: Plan, rank: RankPlan, group: Group, max_position: int, device: torch.device
) -> Decoder:
    """Reads rank `rank` of `plan`; `max_position` is the longest sequence that will be run."""
    return _Loader(checkpoint, plan, rank, group, device).decoder(max_position)


class _Loader:
    def __init__(self, checkpoint: Checkpoint, plan: Plan, rank: RankPlan, group: Group, device: torch.device) -> None:
        self._checkpoint, self._plan, self._rank, self._group = checkpoint, plan, rank, group
        self._spec = plan.model
        self._dtype: torch.dtype = getattr(torch, plan.dtype)
        self._device = device

    def decoder(self, max_position: int) -> Decoder:
        spec, rank = self._spec, self._rank
        first, last = rank.stage == 0, rank.stage == self._plan.pp - 1
        table = self._read("model.embed_tokens.weight", rows=rank.vocab) if first else None
        head = norm = None
        if last:
            norm = self._norm("model.norm.weight")
            if not spec.tied_head:
                head = Linear(self._read("lm_head.weight", rows=rank.vocab))
            else:
                tied = table if table is not None else self._read("model.embed_tokens.weight", rows=rank.vocab)
                head = Linear(tied)
        return Decoder(
            rotary=RotaryTable(spec.rope, spec.head_dim, max_position, self._dtype, self._device),
            blocks=tuple(self._block(layer) for layer in range(rank.layers.start, rank.layers.stop)),
            embedding=None if table is None else Embedding(table, rank.vocab, self._group),
            norm=norm,
            head=head,
        )

    def _block(self, layer: int) -> Block:
        spec, rank = self._spec, self._rank
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        query, key = self._head_rows(rank.heads), self._head_rows(rank.kv_heads)
        parts = (("q_proj", query), ("k_proj", key), ("v_proj", key))
        qkv = torch.cat([self._read(f"{attention}.{name}.weight", rows=rows) for name, rows in parts])
        bias = None
        if spec.qkv_bias:
            bias = torch.cat([self._read(f"{attention}.{name}.bias", rows=rows) for name, rows in parts])
        norms = None
        if spec.qk_norm:
            norms = (self._norm(f"{attention}.q_norm.weight"), self._norm(f"{attention}.k_norm.weight"))
        gate_up = torch.cat([self._read(f"{mlp}.{name}.weight", rows=rank.mlp) for name in ("gate_proj", "up_proj")])
        return Block(
            attention_norm=self._norm(f"{prefix}.input_layernorm.weight"),
            attention=Attention(
                qkv=Linear(qkv, bias),
                out=Linear(self._read(f"{attention}.o_proj.weight", cols=query)),
                norms=norms,
                heads=len(rank.heads),
                kv_heads=len(rank.kv_heads),
                head_dim=spec.head_dim,
                window=spec.layer_windows[layer],
                cache=KVCache(
                    self._plan.kv_blocks,
                    self._plan.kv_block_size,
                    len(rank.kv_heads),
                    spec.head_dim,
                    self._dtype,
                    self._device,
                ),
                group=self._group,
            ),
            mlp_norm=self._norm(f"{prefix}.post_attention_layernorm.weight"),
            mlp=GatedMLP(Linear(gate_up), Linear(self._read(f"{mlp}.down_proj.weight", cols=rank.mlp)), self._group),
        )

    def _head_rows(self, heads: Span) -> Span:
        dim = self._spec.head_dim
        return Span(heads.start * dim, heads.stop * dim)

    def _norm(self, name: str) -> Norm:
        return Norm(self._read(name), self._spec.norm_eps)

    def _read(self, name: str, rows: Span | None = None, cols: Span | None = None) -> Tensor:
        tensor = self._checkpoint.read(name, rows, cols)
        return tensor.to(self._device, self._dtype).contiguous()
