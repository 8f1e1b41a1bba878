"""How long a layout takes: per rank, for a step through all stages, and for a crowd of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from partitioning.costs import Load, compute_seconds, handover_seconds, stage_communication_seconds
from partitioning.layout import StageLayout
from partitioning.model_spec import ModelSpec
from partitioning.settings import DECODE, NEW_TOKENS, PROMPT_TOKENS, PlanSettings


def rank_seconds(model: ModelSpec, settings: PlanSettings, stage: StageLayout, load: Load) -> list[float]:
    """Seconds of a step on each rank of a stage, its collectives and the hand-over from the stage before included."""
    embeds, samples = stage.ranks[0].part.embeds, stage.ranks[0].part.samples
    shared = stage_communication_seconds(
        model,
        settings.dtype,
        len(stage.layers),
        len(stage.ranks),
        stage.link,
        load,
        embeds=embeds,
        samples=samples,
    )
    if not embeds:
        shared += handover_seconds(model, settings.dtype, stage.entry, load)
    compute = {
        rank: compute_seconds(model, settings.cached, settings.stored(rank.device.kind), rank.part, rank.device, load)
        for rank in dict.fromkeys(stage.ranks)
    }
    return [shared + compute[rank] for rank in stage.ranks]


def stage_seconds(model: ModelSpec, settings: PlanSettings, stages: Sequence[StageLayout], load: Load) -> list[float]:
    """Seconds of a step on each stage: those of its slowest rank."""
    return [max(rank_seconds(model, settings, stage, load)) for stage in stages]


def decode_seconds(
    model: ModelSpec, settings: PlanSettings, stages: Sequence[StageLayout], sequences: int = 1
) -> float:
    """Seconds until each of `sequences` sequences has its next token.

    They are dealt to as many micro-batches as there are stages; a micro-batch has to pass all stages, and each stage
    has to serve all micro-batches, whichever takes longer.
    """
    micro_batches = min(len(stages), sequences)
    batch = ceil(sequences / micro_batches)
    load = replace(DECODE, tokens=batch, sampled=batch, sequences=batch)
    seconds = stage_seconds(model, settings, stages, load)
    return max(sum(seconds), micro_batches * max(seconds))


def prefill_seconds(model: ModelSpec, settings: PlanSettings, stages: Sequence[StageLayout], prompts: int = 1) -> float:
    """Seconds to take in `prompts` prompts of PROMPT_TOKENS, in chunks that follow each other through the stages."""
    chunks = prompts * PROMPT_TOKENS / settings.prefill.tokens
    seconds = stage_seconds(model, settings, stages, settings.prefill)
    return sum(seconds) + (chunks - 1) * max(seconds)


def crowd_seconds(
    model: ModelSpec,
    settings: PlanSettings,
    stages: Sequence[StageLayout],
    replicas: int,
    kv_tokens: int,
    concurrency: int,
) -> float:
    """Seconds until `concurrency` requests that arrive together are answered, each of PROMPT_TOKENS and NEW_TOKENS.

    As many run at once as a replica's `kv_tokens` hold; the others wait for a wave of their own.
    """
    requests = ceil(concurrency / replicas)
    at_once = min(requests, max(1, kv_tokens // (PROMPT_TOKENS + NEW_TOKENS)))
    waves = ceil(requests / at_once)
    step = decode_seconds(model, settings, stages, at_once)
    return prefill_seconds(model, settings, stages, requests) + waves * NEW_TOKENS * step
