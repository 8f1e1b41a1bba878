"""A replica's cut on its devices, and the plan that says so."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from partitioning.costs import weight_bytes
from partitioning.coverage import check_plan
from partitioning.layout import StageLayout
from partitioning.memory import MemoryShortError, check_memory, kv_blocks
from partitioning.model_spec import ModelSpec
from partitioning.placement import Place, place_ranks
from partitioning.plan import Plan, PlanError, Prediction, RankPlan
from partitioning.predict import decode_seconds, prefill_seconds, rank_seconds
from partitioning.settings import DECODE, PROMPT_TOKENS, PlanSettings
from partitioning.slicing import lay_out
from partitioning.topology import Topology


def cut_replica(
    model: ModelSpec,
    settings: PlanSettings,
    topology: Topology,
    tp: int,
    pp: int,
    replicas: int,
    device_weights: Sequence[float] | None = None,
    layer_split: Sequence[int] | None = None,
) -> tuple[list[list[Place]], tuple[StageLayout, ...]]:
    """The places of every replica's ranks, and the cut that they share.

    Raises:
        PlanError: as make_plan.
    """
    for name, value in [("tp", tp), ("pp", pp), ("replicas", replicas)]:
        if value < 1:
            raise PlanError(f"{name} must be at least 1, got {value}")
    if pp > model.num_layers:
        raise PlanError(f"pp={pp} stages need as many layers, {model.name} has {model.num_layers}: lower pp")
    places = place_ranks(topology, tp, pp, replicas)
    if device_weights is not None:
        weights = _given_weights(device_weights, tp, pp)
        stages = lay_out(model, settings, topology, places, tp, weights, layer_split)
        check_memory(model, settings, stages)
        return places, stages
    devices = [[places[replica][rank].device for replica in range(replicas)] for rank in range(tp * pp)]
    speeds = [min(sqrt(device.memory_bandwidth * device.flops) for device in column) for column in devices]
    stages = lay_out(model, settings, topology, places, tp, speeds, layer_split)
    try:
        check_memory(model, settings, stages)
    except MemoryShortError:
        memory = [float(min(device.memory_bytes for device in column)) for column in devices]
        if len(set(memory)) == 1:
            raise
        # Quick devices with little memory: rather slow than not at all.
        stages = lay_out(model, settings, topology, places, tp, memory, layer_split)
        check_memory(model, settings, stages)
    return places, stages


def number_ranks(
    model: ModelSpec,
    model_path: str,
    settings: PlanSettings,
    places: Sequence[Sequence[Place]],
    stages: Sequence[StageLayout],
    explanation: tuple[str, ...] = (),
) -> Plan:
    """The plan of a cut that fits."""
    ranks: list[RankPlan] = []
    prefill_chunks = PROMPT_TOKENS / settings.prefill.tokens
    for number, stage in enumerate(stages):
        decode = rank_seconds(model, settings, stage, DECODE)
        prefill = rank_seconds(model, settings, stage, settings.prefill)
        for tp_rank, rank in enumerate(stage.ranks):
            place = places[0][len(ranks)]
            ranks.append(
                RankPlan(
                    rank=len(ranks),
                    stage=number,
                    tp_rank=tp_rank,
                    node=place.node,
                    device=place.name,
                    threads=rank.device.threads,
                    layers=stage.layers,
                    heads=rank.heads,
                    kv_heads=rank.kv_heads,
                    mlp=rank.mlp,
                    vocab=rank.vocab,
                    weight_bytes=weight_bytes(model, settings.stored(rank.device.kind), rank.part),
                    decode_seconds=decode[tp_rank],
                    prefill_seconds=prefill[tp_rank] * prefill_chunks,
                )
            )
    plan = Plan(
        model=model,
        model_path=model_path,
        dtype=settings.dtype,
        weights=settings.weights,
        kv_cache=settings.kv_cache,
        tp=len(stages[0].ranks),
        pp=len(stages),
        ranks=tuple(ranks),
        kv_block_size=settings.kv_block_size,
        kv_blocks=kv_blocks(model, settings, stages),
        prediction=Prediction(
            decode_seconds=decode_seconds(model, settings, stages),
            prefill_seconds=prefill_seconds(model, settings, stages),
            prefill_tokens=PROMPT_TOKENS,
            explanation=explanation,
        ),
        replica_devices=tuple(tuple((place.node, place.name) for place in replica) for replica in places),
    )
    check_plan(plan)
    return plan


def _given_weights(weights: Sequence[float], tp: int, pp: int) -> list[float]:
    if len(weights) not in (tp, tp * pp) or min(weights) <= 0:
        raise PlanError(
            f"device_weights {list(weights)} must be positive numbers, one a rank of a stage ({tp}) "
            f"or of a replica ({tp * pp})"
        )
    return list(weights) * (pp if len(weights) == tp else 1)
