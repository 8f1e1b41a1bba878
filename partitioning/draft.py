"""The model that guesses tokens for speculative decoding: whole on rank 0, beside that rank's slice."""

from __future__ import annotations

from dataclasses import dataclass, replace

from partitioning.costs import Slice
from partitioning.model_spec import ModelSpec
from partitioning.plan import Plan, RankPlan, Span


def first_layers(model: ModelSpec, layers: int) -> ModelSpec:
    """The model that ends after so many layers."""
    return replace(model, num_layers=layers, layer_windows=model.layer_windows[:layers])


@dataclass(frozen=True)
class Draft:
    """`exits`: it is the first layers of the model itself, which a rank with the whole model has already."""

    model: ModelSpec
    exits: bool = False

    def apart(self, ranks: int) -> bool:
        """Whether it has weights and a KV cache of its own in a replica of so many ranks."""
        return not self.exits or ranks > 1

    @property
    def whole(self) -> Slice:
        return Slice.whole(self.model)


def draft_plan(plan: Plan, model: ModelSpec, path: str) -> Plan:
    """For `model` on rank 0 of `plan`, with as many KV blocks as the replica has."""
    mine = plan.ranks[0]
    rank = RankPlan(
        rank=0,
        stage=0,
        tp_rank=0,
        node=mine.node,
        device=mine.device,
        threads=mine.threads,
        layers=Span(0, model.num_layers),
        heads=Span(0, model.num_heads),
        kv_heads=Span(0, model.num_kv_heads),
        mlp=Span(0, model.intermediate_size),
        vocab=Span(0, model.vocab_size),
        weight_bytes=0,
    )
    return replace(
        plan,
        model=model,
        model_path=path,
        tp=1,
        pp=1,
        ranks=(rank,),
        replica_devices=(((mine.node, mine.device),),),
    )
