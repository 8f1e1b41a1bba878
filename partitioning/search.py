"""The quickest of all layouts that fit a cluster, and why the others lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from partitioning.assembly import cut_replica
from partitioning.layout import StageLayout
from partitioning.memory import MemoryShortError, kv_blocks
from partitioning.model_spec import ModelSpec
from partitioning.placement import Place
from partitioning.plan import PlanError
from partitioning.predict import crowd_seconds, decode_seconds, prefill_seconds
from partitioning.settings import NEW_TOKENS, PROMPT_TOKENS, PlanSettings
from partitioning.topology import Topology

_RUNNERS_UP = 3
# Predictions this near to each other are as good as equal: then the layout with fewer ranks is the better one.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class Candidate:
    """A number of ranks a stage, of stages, and of copies."""

    tp: int
    pp: int
    replicas: int

    @property
    def ranks(self) -> int:
        return self.tp * self.pp * self.replicas

    def __str__(self) -> str:
        return f"tp={self.tp} pp={self.pp} replicas={self.replicas}"


@dataclass(frozen=True)
class Scored:
    """A layout that fits; `seconds` until the crowd of requests is answered."""

    candidate: Candidate
    seconds: float
    places: list[list[Place]]
    stages: tuple[StageLayout, ...]


@dataclass(frozen=True)
class Found:
    places: list[list[Place]]
    stages: tuple[StageLayout, ...]
    explanation: tuple[str, ...]


def search(
    model: ModelSpec, settings: PlanSettings, topology: Topology, replicas: int | None, concurrency: int
) -> Found:
    """The layout that answers `concurrency` simultaneous requests soonest; of those nearly as quick, the smallest.

    Raises:
        PlanError: nothing fits.
    """
    if concurrency < 1:
        raise PlanError(f"concurrency must be at least 1, got {concurrency}")
    if (replicas or 1) > topology.device_count:
        raise PlanError(
            f"{replicas} replicas need as many devices, the cluster has {topology.device_count}: lower replicas"
        )
    scored: list[Scored] = []
    refused: dict[Candidate, MemoryShortError] = {}
    for candidate in _candidates(model, topology, replicas, concurrency):
        try:
            scored.append(_score(model, settings, topology, candidate, concurrency))
        except MemoryShortError as error:
            refused[candidate] = error
    if not scored:
        # The more ranks, the less on each.
        nearest = max(refused, key=lambda candidate: candidate.tp * candidate.pp)
        raise PlanError(f"none of {len(refused)} layouts fits; {nearest} comes nearest: {refused[nearest]}")
    scored.sort(key=lambda entry: entry.seconds)
    near = [entry for entry in scored if entry.seconds <= scored[0].seconds * (1 + _TOLERANCE)]
    best = min(near, key=lambda entry: entry.candidate.ranks)
    return Found(best.places, best.stages, _explanation(model, settings, best, scored, refused, concurrency))


def _candidates(model: ModelSpec, topology: Topology, replicas: int | None, concurrency: int) -> Iterator[Candidate]:
    devices = topology.device_count // (replicas or 1)
    for tp in _degrees(min(devices, model.num_heads), topology):
        for pp in _degrees(min(devices // tp, model.num_layers), topology):
            # A copy without a request would be idle.
            yield Candidate(tp, pp, replicas or min(topology.device_count // (tp * pp), concurrency))


def _degrees(limit: int, topology: Topology) -> list[int]:
    """All degrees up to the size of a node, and beyond that those that fill nodes."""
    node = max(len(node.devices) for node in topology.nodes)
    return [*range(1, min(limit, node) + 1), *range(2 * node, limit + 1, node)]


def _score(
    model: ModelSpec, settings: PlanSettings, topology: Topology, candidate: Candidate, concurrency: int
) -> Scored:
    shared = topology.shared_by(candidate.ranks)
    places, stages = cut_replica(model, settings, shared, candidate.tp, candidate.pp, candidate.replicas)
    tokens = kv_blocks(model, settings, stages) * settings.kv_block_size
    seconds = crowd_seconds(model, settings, stages, candidate.replicas, tokens, concurrency)
    return Scored(candidate, seconds, places, stages)


def _explanation(
    model: ModelSpec,
    settings: PlanSettings,
    best: Scored,
    scored: Sequence[Scored],
    refused: Mapping[Candidate, MemoryShortError],
    concurrency: int,
) -> tuple[str, ...]:
    requests = "one request" if concurrency == 1 else f"{concurrency} requests at once"
    lines = [
        f"{best.candidate} won among {len(scored)} layouts that fit: {requests} of {PROMPT_TOKENS} + {NEW_TOKENS} "
        f"tokens in {best.seconds:.3g} s ({_alone(model, settings, best)})"
    ]
    for other in [entry for entry in scored if entry is not best][:_RUNNERS_UP]:
        difference = other.seconds / best.seconds - 1
        verdict = (
            f"{difference:.0%} slower" if difference >= 0 else f"only {-difference:.1%} quicker, with more devices"
        )
        lines.append(f"{other.candidate}: {verdict}, {other.seconds:.3g} s ({_alone(model, settings, other)})")
    if refused:
        candidate, error = next(iter(refused.items()))
        lines.append(f"{len(refused)} layouts do not fit, such as {candidate}: {error.shortfall}")
    return tuple(lines)


def _alone(model: ModelSpec, settings: PlanSettings, layout: Scored) -> str:
    decode = decode_seconds(model, settings, layout.stages) * 1e3
    prefill = prefill_seconds(model, settings, layout.stages) * 1e3
    return f"one alone: prefill {prefill:.3g} ms, {decode:.3g} ms a token"
