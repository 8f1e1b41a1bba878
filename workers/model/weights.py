"""A rank's own weights, read from the checkpoint slice by slice, in the form in which they will be kept.

Both engines are built from these: the torch one in `load.py`, the native one in `workers.native.stage`. Layers are read
one at a time, so that nobody ever holds the whole model twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from partitioning.checkpoint import Checkpoint
from partitioning.plan import Plan, RankPlan, Span
from partitioning.quantised import Codes, quantise

Matrix: TypeAlias = Tensor | Codes  # [outputs, inputs]


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer: qkv [(heads + 2 * kv_heads) * head_dim, hidden], out [hidden, heads * head_dim], gate and up
    [columns, hidden] of one kind, down [hidden, columns]. Vectors are float32."""

    window: int
    attention_norm: Tensor
    qkv: Matrix
    qkv_bias: Tensor | None
    head_norms: tuple[Tensor, Tensor] | None
    out: Matrix
    mlp_norm: Tensor
    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class EndWeights:
    """What a stage has besides its layers: `embedding` on the first, `norm` and `head` on the last. A tied head is the
    embedding itself where a rank has both."""

    embedding: Matrix | None
    norm: Tensor | None
    head: Matrix | None


class WeightReader:
    """Reads the slices that `rank` of `plan` holds, and nothing else."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, rank: RankPlan) -> None:
        self._checkpoint, self._plan, self._rank = checkpoint, plan, rank
        self._dtype: torch.dtype = getattr(torch, plan.dtype)

    def ends(self) -> EndWeights:
        rank, tied = self._rank, self._plan.model.tied_head
        first, last = rank.stage == 0, rank.stage == self._plan.pp - 1
        embedding = self._table("model.embed_tokens.weight") if first else None
        head = None
        if last:
            head = self._table("lm_head.weight") if not tied else embedding
            if head is None:
                head = self._table("model.embed_tokens.weight")
        return EndWeights(embedding, self._vector("model.norm.weight") if last else None, head)

    def layers(self) -> Iterator[LayerWeights]:
        return (self._layer(number) for number in range(self._rank.layers.start, self._rank.layers.stop))

    def _layer(self, number: int) -> LayerWeights:
        spec, rank = self._plan.model, self._rank
        prefix = f"model.layers.{number}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        query, key = self._head_rows(rank.heads), self._head_rows(rank.kv_heads)
        parts = (("q_proj", query), ("k_proj", key), ("v_proj", key))
        gate, up = self._alike(
            [self._stored(f"{mlp}.{name}.weight", rows=rank.mlp) for name in ("gate_proj", "up_proj")]
        )
        return LayerWeights(
            window=spec.layer_windows[number],
            attention_norm=self._vector(f"{prefix}.input_layernorm.weight"),
            qkv=stacked(self._alike([self._stored(f"{attention}.{name}.weight", rows=rows) for name, rows in parts])),
            qkv_bias=torch.cat([self._vector(f"{attention}.{name}.bias", rows) for name, rows in parts])
            if spec.qkv_bias
            else None,
            head_norms=(self._vector(f"{attention}.q_norm.weight"), self._vector(f"{attention}.k_norm.weight"))
            if spec.qk_norm
            else None,
            out=self._matrix(f"{attention}.o_proj.weight", cols=query),
            mlp_norm=self._vector(f"{prefix}.post_attention_layernorm.weight"),
            gate=gate,
            up=up,
            down=self._matrix(f"{mlp}.down_proj.weight", cols=rank.mlp),
        )

    def _head_rows(self, heads: Span) -> Span:
        dim = self._plan.model.head_dim
        return Span(heads.start * dim, heads.stop * dim)

    def _vector(self, name: str, rows: Span | None = None) -> Tensor:
        return self._checkpoint.read(name, rows).to(self._dtype).float().contiguous()

    def _table(self, name: str) -> Matrix:
        # Four bits would cost the two ends of the model more accuracy than they are worth in bytes.
        return self._matrix(name, rows=self._rank.vocab, at_least_bits=8)

    def _matrix(self, name: str, rows: Span | None = None, cols: Span | None = None, at_least_bits: int = 0) -> Matrix:
        return self._alike([self._stored(name, rows, cols)], at_least_bits)[0]

    def _stored(self, name: str, rows: Span | None = None, cols: Span | None = None) -> Matrix:
        """The file's own blocks where the plan wants them, else plain floats."""
        if self._plan.weights != "dense" and not (self._plan.weights == "auto" and self._dtype == torch.float32):
            blocks = self._checkpoint.read_quantised(name, rows, cols, self._rank.kind)
            if blocks is not None and self._plan.weights in ("auto", f"int{blocks.bits}"):
                return blocks
        return self._checkpoint.read(name, rows, cols)

    def _alike(self, parts: Sequence[Matrix], at_least_bits: int = 0) -> list[Matrix]:
        """All of one kind, the one the plan asks for; blocks of different kinds become plain floats."""
        blocks = [part for part in parts if isinstance(part, Codes)]
        if len(blocks) == len(parts) and all(blocks[0].like(part) for part in blocks):
            return list(parts)
        plain = [part.dequantise() if isinstance(part, Codes) else part for part in parts]
        if self._plan.weights in ("int8", "int4"):
            bits = max(at_least_bits, int(self._plan.weights.removeprefix("int")))
            return [quantise(part, bits) for part in plain]
        return [part.to(self._dtype).contiguous() for part in plain]


def stacked(parts: Sequence[Matrix]) -> Matrix:
    """Matrices of one kind as one, below each other."""
    codes = [part for part in parts if isinstance(part, Codes)]
    return codes[0].stack(codes[1:]) if codes else torch.cat([part for part in parts if isinstance(part, Tensor)])
