"""Cuts a model for the devices its ranks are placed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from partitioning.costs import Slice, ends_seconds, kv_token_bytes, layer_parameters, layer_seconds
from partitioning.cuts import cut_columns, cut_heads, cut_layers, spans
from partitioning.layout import RankLayout, StageLayout
from partitioning.memory import room_bytes
from partitioning.model_spec import ModelSpec
from partitioning.placement import Place
from partitioning.plan import PlanError, Span
from partitioning.settings import DECODE, NEW_TOKENS, PROMPT_TOKENS, PlanSettings
from partitioning.topology import DeviceSpec, Link, Topology


def lay_out(
    model: ModelSpec,
    settings: PlanSettings,
    topology: Topology,
    replicas: Sequence[Sequence[Place]],
    tp: int,
    weights: Sequence[float],
    layer_split: Sequence[int] | None,
) -> tuple[StageLayout, ...]:
    """Cuts the model for the places of the replicas' ranks; `weights` are the ranks' shares within their stage.

    Every replica is cut alike, so each rank is planned for the weakest device it gets in any of them.
    """
    pp = len(replicas[0]) // tp
    stages = []
    for stage in range(pp):
        members = range(stage * tp, (stage + 1) * tp)
        shares = tuple(weights[rank] for rank in members)
        embeds, samples = stage == 0, stage == pp - 1
        vocab = cut_columns(model.vocab_size, shares) if embeds or samples else (Span(0, 0),) * tp
        ranks = tuple(
            RankLayout(
                heads,
                kv_heads,
                mlp,
                rows,
                Slice(1, len(heads), len(kv_heads), len(mlp), len(rows), embeds, samples),
                _weakest([places[rank].device for places in replicas]),
            )
            for rank, (heads, kv_heads), mlp, rows in zip(
                members,
                cut_heads(model.num_heads, model.num_kv_heads, shares),
                cut_columns(model.intermediate_size, shares),
                vocab,
                strict=True,
            )
        )
        within = [{places[rank].node for rank in members} for places in replicas]
        entry = [{place.node for place in places[max(0, stage - 1) * tp : members.stop]} for places in replicas]
        stages.append(StageLayout(Span(0, 1), ranks, _slowest(topology, within), _slowest(topology, entry)))
    split = _layer_spans(model, settings, stages, layer_split)
    return tuple(
        replace(
            stage,
            layers=layers,
            ranks=tuple(replace(rank, part=replace(rank.part, layers=len(layers))) for rank in stage.ranks),
        )
        for stage, layers in zip(stages, split, strict=True)
    )


def _layer_spans(
    model: ModelSpec, settings: PlanSettings, stages: Sequence[StageLayout], layer_split: Sequence[int] | None
) -> list[Span]:
    if layer_split is not None:
        if len(layer_split) != len(stages) or min(layer_split) < 1 or sum(layer_split) != model.num_layers:
            raise PlanError(
                f"layer_split {','.join(map(str, layer_split))} must be {len(stages)} positive numbers (one a stage) "
                f"that add up to the model's {model.num_layers} layers"
            )
        return spans(layer_split)
    chunks = PROMPT_TOKENS / settings.prefill.tokens
    seconds, extra, room = [], [], []
    for stage in stages:
        parts = [(rank.part, rank.device, settings.stored(rank.device.kind)) for rank in dict.fromkeys(stage.ranks)]
        seconds.append(
            max(
                chunks * layer_seconds(model, settings.cached, stored, part, device, settings.prefill)
                + NEW_TOKENS * layer_seconds(model, settings.cached, stored, part, device, DECODE)
                for part, device, stored in parts
            )
        )
        extra.append(
            max(
                chunks * ends_seconds(model, stored, part, device, settings.prefill)
                + NEW_TOKENS * ends_seconds(model, stored, part, device, DECODE)
                for part, device, stored in parts
            )
        )
        room.append(min(_layers_that_fit(model, settings, rank) for rank in stage.ranks))
    if min(room) < 1 or sum(room) < model.num_layers:
        # It cannot fit. Balance it all the same: the check of the ranks' memory then names the worst one.
        room = [model.num_layers] * len(stages)
    return cut_layers(model.num_layers, seconds, extra, room)


def _layers_that_fit(model: ModelSpec, settings: PlanSettings, rank: RankLayout) -> int:
    without = room_bytes(model, settings, replace(rank.part, layers=0), rank.device)
    one = replace(rank.part, layers=1)
    layer = layer_parameters(model, one) * settings.stored(rank.device.kind).layer
    layer += kv_token_bytes(model, settings.cached, one) * settings.needed_tokens
    return int(max(0, without) // layer)


def _weakest(devices: Sequence[DeviceSpec]) -> DeviceSpec:
    first = devices[0]
    if all(device == first for device in devices):
        return first
    return replace(
        first,
        memory_bytes=min(device.memory_bytes for device in devices),
        memory_bandwidth=min(device.memory_bandwidth for device in devices),
        flops=min(device.flops for device in devices),
        threads=min(device.threads for device in devices),
    )


def _slowest(topology: Topology, groups: Sequence[set[str]]) -> Link:
    """The slowest link within any of these groups of nodes."""
    links = [topology.network if len(nodes) > 1 else topology.node(next(iter(nodes))).link for nodes in groups]
    return min(links, key=lambda link: link.bandwidth)
