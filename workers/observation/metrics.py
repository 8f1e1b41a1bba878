"""A rank's metrics, for whoever fetches them: docs/metrics.md lists them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.observation.build_info import BuildInfo
from workers.observation.measures import Durations, Measures
from workers.request import EngineLoad

if TYPE_CHECKING:  # torch takes a second to import
    from workers.rank import Rank


class RankMetrics(Collector):
    """Reads what rank `number` of a replica has counted, and on rank 0 its engine."""

    def __init__(self, rank: Rank, number: int) -> None:
        self._rank, self._number = rank, number

    @staticmethod
    def describe() -> Iterator[Metric]:
        """Every metric that ranks have."""
        yield from _of_rank(None, 0)
        yield from _of_engine(EngineLoad(), Measures(), {})
        yield from BuildInfo().collect()

    def collect(self) -> Iterator[Metric]:
        yield from _of_rank(self._rank, self._number)
        if (engine := self._rank.running) is not None:
            yield from _of_engine(engine.load(), engine.measures, engine.parts())
            yield from BuildInfo().collect()


def _of_rank(rank: Rank | None, number: int) -> Iterator[Metric]:
    waited = CounterMetricFamily(
        "phalanx_rank_collective_seconds", "Time that a rank waited for others of its stage.", labels=["rank"]
    )
    loading = GaugeMetricFamily("phalanx_weights_load_seconds", "Time that a rank took to load.", labels=["rank"])
    memory = GaugeMetricFamily("phalanx_device_memory_bytes", "Memory of a rank's device.", labels=["rank", "kind"])
    if rank is not None:
        if (waited_s := rank.waited_s) is not None:
            waited.add_metric([str(number)], waited_s)
        if rank.loading_s is not None:
            loading.add_metric([str(number)], rank.loading_s)
        for kind, size in rank.memory().items():
            memory.add_metric([str(number), kind], size)
    yield from (waited, loading, memory)


def _of_engine(load: EngineLoad, measures: Measures, parts: Mapping[str, Durations]) -> Iterator[Metric]:
    for name, meaning, now in (
        ("sequences_running", "Sequences in the running batch.", load.running),
        ("sequences_waiting", "Sequences that wait for a place in it.", load.waiting),
    ):
        yield GaugeMetricFamily(f"phalanx_{name}", meaning, now)
    blocks = GaugeMetricFamily("phalanx_kv_blocks", "KV blocks, by what they hold.", labels=["state"])
    blocks.add_metric(["used"], load.total_blocks - load.free_blocks)
    blocks.add_metric(["cached"], load.cached_blocks)
    blocks.add_metric(["free"], load.free_blocks - load.cached_blocks)
    yield blocks
    for name, meaning, count in (
        ("generated_tokens", "Tokens generated.", load.generated_tokens),
        ("prefix_cache_queried_tokens", "Tokens looked up in the prefix cache.", measures.queried_tokens),
        ("prefix_cache_hit_tokens", "Tokens found in the prefix cache.", measures.hit_tokens),
        ("preemptions", "Sequences that lost their place and are computed again.", measures.preemptions),
        ("draft_tokens", "Tokens that were guessed.", load.drafted_tokens),
        ("draft_tokens_accepted", "Guesses that turned out right.", load.accepted_tokens),
    ):
        yield CounterMetricFamily(f"phalanx_{name}", meaning, count)
    queue = HistogramMetricFamily("phalanx_queue_seconds", "Time that a sequence waited for its first step.")
    _add(queue, [], measures.queued)
    yield queue
    steps = HistogramMetricFamily("phalanx_step_seconds", "Time of a step on rank 0, by its parts.", labels=["part"])
    for part, durations in parts.items():
        _add(steps, [part], durations)
    yield steps


def _add(family: HistogramMetricFamily, labels: list[str], durations: Durations) -> None:
    bounds = [*map(str, map(float, durations.bounds)), "+Inf"]
    below = accumulate(durations.counts)
    family.add_metric(labels, list(zip(bounds, below, strict=True)), durations.sum)
