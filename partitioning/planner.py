"""From (model, topology) to a plan: cut as asked, or the quickest cut there is."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

from partitioning.costs import kv_token_bytes, reserve_bytes, weight_bytes
from partitioning.coverage import check_plan
from partitioning.layout import (
    DECODE,
    PROMPT_TOKENS,
    PlanSettings,
    RankLayout,
    StageLayout,
    lay_out,
    needed_tokens,
    room_bytes,
)
from partitioning.model_spec import DType, ModelSpec
from partitioning.placement import Place, place_ranks
from partitioning.plan import Plan, PlanError, Prediction, RankPlan
from partitioning.predict import decode_seconds, prefill_seconds, rank_seconds
from partitioning.topology import Topology

# A host's memory has other users, so on CPU the cache stops at this many sequences of the greatest length, or this
# many tokens, unless more is asked for.
_CPU_CACHE_SEQUENCES = 8
_CPU_CACHE_TOKENS = 65536

_DEFAULT_MODEL_LEN = 8192


def plan_settings(
    model: ModelSpec,
    *,
    dtype: DType | None = None,
    max_model_len: int | None = None,
    max_batch_tokens: int = 512,
    kv_block_size: int = 16,
    kv_cache_tokens: int | None = None,
    memory_fraction: float = 0.9,
) -> PlanSettings:
    """Settings with the model's own dtype and (up to 8192 tokens) length where none is given.

    Raises:
        PlanError: a figure out of range.
    """
    length = min(model.max_position, _DEFAULT_MODEL_LEN) if max_model_len is None else max_model_len
    if not 1 <= length <= model.max_position:
        raise PlanError(f"max_model_len {length} must be from 1 to the model's {model.max_position} positions")
    for name, value in [
        ("max_batch_tokens", max_batch_tokens),
        ("kv_block_size", kv_block_size),
        ("kv_cache_tokens", 1 if kv_cache_tokens is None else kv_cache_tokens),
    ]:
        if value < 1:
            raise PlanError(f"{name} must be at least 1, got {value}")
    if not 0 < memory_fraction <= 1:
        raise PlanError(f"memory_fraction must be above 0 and at most 1, got {memory_fraction}")
    return PlanSettings(dtype or model.dtype, length, max_batch_tokens, kv_block_size, kv_cache_tokens, memory_fraction)


def make_plan(
    model: ModelSpec,
    model_path: str,
    topology: Topology,
    *,
    tp: int,
    pp: int,
    replicas: int = 1,
    dtype: DType | None = None,
    max_model_len: int | None = None,
    max_batch_tokens: int = 512,
    kv_block_size: int = 16,
    kv_cache_tokens: int | None = None,
    memory_fraction: float = 0.9,
    device_weights: Sequence[float] | None = None,
    layer_split: Sequence[int] | None = None,
) -> Plan:
    """The plan for `replicas` replicas of `pp` stages of `tp` ranks.

    `device_weights` are the ranks' shares of their stage, one a rank of a stage (`tp` of them) or of a replica
    (`tp * pp`); without them they follow the devices' speed. `layer_split` is the number of layers of each stage;
    without it the stages' predicted times are balanced.

    Raises:
        PlanError: the cluster has too few devices, or a rank too little memory, or an argument is out of range.
    """
    settings = plan_settings(
        model,
        dtype=dtype,
        max_model_len=max_model_len,
        max_batch_tokens=max_batch_tokens,
        kv_block_size=kv_block_size,
        kv_cache_tokens=kv_cache_tokens,
        memory_fraction=memory_fraction,
    )
    places, stages = cut_replica(model, settings, topology, tp, pp, replicas, device_weights, layer_split)
    return number_ranks(model, model_path, settings, places, stages)


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
    except PlanError:
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
                    weight_bytes=weight_bytes(model, settings.dtype, rank.part),
                    decode_seconds=decode[tp_rank],
                    prefill_seconds=prefill[tp_rank] * prefill_chunks,
                )
            )
    plan = Plan(
        model=model,
        model_path=model_path,
        dtype=settings.dtype,
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


def kv_blocks(model: ModelSpec, settings: PlanSettings, stages: Sequence[StageLayout]) -> int:
    """KV blocks of the replica: what was asked for, or the least that any rank's memory holds."""
    size = settings.kv_block_size
    if settings.kv_cache_tokens is not None:
        return -(-settings.kv_cache_tokens // size)
    tokens = min(_kv_capacity(model, settings, rank) for stage in stages for rank in dict.fromkeys(stage.ranks))
    if any(rank.device.kind == "cpu" for stage in stages for rank in stage.ranks) or tokens == inf:
        tokens = min(tokens, max(_CPU_CACHE_SEQUENCES * settings.max_model_len, _CPU_CACHE_TOKENS))
    # At least the whole of one sequence, which check_memory has granted, also when that is no multiple of a block.
    return max(int(tokens) // size, -(-settings.max_model_len // size))


def check_memory(model: ModelSpec, settings: PlanSettings, stages: Sequence[StageLayout]) -> None:
    """Raises PlanError when a rank has too little memory, naming the one that lacks most."""
    tokens = needed_tokens(settings)
    worst, lack = 0, 0
    layouts = [rank for stage in stages for rank in stage.ranks]
    missing: dict[RankLayout, int] = {}
    for number, rank in enumerate(layouts):
        if rank not in missing:
            kv = kv_token_bytes(model, settings.dtype, rank.part) * tokens
            missing[rank] = kv - room_bytes(model, settings, rank)
        if missing[rank] > lack:
            worst, lack = number, missing[rank]
    if lack == 0:
        return
    rank = layouts[worst]
    weights = weight_bytes(model, settings.dtype, rank.part)
    kv = kv_token_bytes(model, settings.dtype, rank.part) * tokens
    reserve = reserve_bytes(model, settings.dtype, rank.part, rank.device.kind, settings.max_batch_tokens)
    usable = int(rank.device.memory_bytes * settings.memory_fraction)
    raise PlanError(
        f"{model.name} does not fit with tp={len(stages[0].ranks)} pp={len(stages)}: rank {worst} ({rank.device.name}) "
        f"needs {gigabytes(weights + kv + reserve)} ({gigabytes(weights)} weights, {gigabytes(kv)} for {tokens} tokens "
        f"of KV cache, {gigabytes(reserve)} for the process and activations) and may use {gigabytes(usable)} "
        f"({settings.memory_fraction:.0%} of {gigabytes(rank.device.memory_bytes)}). "
        "Raise tp or pp, lower max_model_len, max_batch_tokens or kv_cache_tokens, or use a smaller dtype"
    )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size < 10e9 else f"{size / 1e9:.1f} GB"


def _kv_capacity(model: ModelSpec, settings: PlanSettings, rank: RankLayout) -> float:
    """Tokens of KV cache that fit a rank; a rank without KV heads has no limit."""
    token = kv_token_bytes(model, settings.dtype, rank.part)
    return room_bytes(model, settings, rank) // token if token else inf


def _given_weights(weights: Sequence[float], tp: int, pp: int) -> list[float]:
    if len(weights) not in (tp, tp * pp) or min(weights) <= 0:
        raise PlanError(
            f"device_weights {list(weights)} must be positive numbers, one a rank of a stage ({tp}) "
            f"or of a replica ({tp * pp})"
        )
    return list(weights) * (pp if len(weights) == tp else 1)
