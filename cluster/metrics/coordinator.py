"""What the coordinator tells: of its replicas' lives, and what their ranks tell of themselves.

Ranks listen nowhere for that. The coordinator asks them through Ray, which reaches them wherever they are, whichever
coordinator has started them, and lets in nobody else. So there is one address to scrape, however many replicas there
are and wherever they go.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from phalanx.v1 import registry_pb2
from workers.observation.build_info import BuildInfo
from workers.observation.metrics import RankMetrics

# Why an epoch ended, or could not begin.
FAILURES = ("rank_lost", "hung", "no_room", "not_built", "not_adopted")

_STATES = {
    registry_pb2.REPLICA_STATE_STARTING: "starting",
    registry_pb2.REPLICA_STATE_READY: "ready",
    registry_pb2.REPLICA_STATE_FAILED: "failed",
    registry_pb2.REPLICA_STATE_DRAINING: "draining",
}
_ANSWER_S = 8.0  # Prometheus waits for ten seconds


@dataclass(frozen=True)
class ReplicaLook:
    """One replica, now: its state, how often it failed for which reason, and the metrics of its ranks as text."""

    state: registry_pb2.Replica
    failures: dict[str, int]
    ranks: Sequence[str]


class CoordinatorMetrics(Collector):
    """Collects from a thread of its own what `look` finds on the event loop that this was made on."""

    def __init__(self, look: Callable[[], Awaitable[Sequence[ReplicaLook]]]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    @staticmethod
    def describe() -> Iterator[Metric]:
        """Every metric there is, those of ranks with the label that they get here."""
        yield from _of_replicas([])
        yield from _labelled(RankMetrics.describe(), None)

    def collect(self) -> Iterator[Metric]:
        async def looked() -> Sequence[ReplicaLook]:
            return await self._look()

        replicas = asyncio.run_coroutine_threadsafe(looked(), self._loop).result(_ANSWER_S)
        families = {family.name: family for family in (*_of_replicas(replicas), *BuildInfo().collect())}
        for replica in replicas:
            for text in replica.ranks:
                for family in _labelled(text_string_to_metric_families(text), replica.state.id):
                    known = families.setdefault(family.name, family)
                    if known is not family:
                        known.samples += family.samples
        yield from families.values()


def _of_replicas(replicas: Iterable[ReplicaLook]) -> Iterator[Metric]:
    states = Counter(_STATES.get(replica.state.state) for replica in replicas)
    count = GaugeMetricFamily("phalanx_replicas", "Replicas by state.", labels=["state"])
    for state in _STATES.values():
        count.add_metric([state], states[state])
    epochs = CounterMetricFamily("phalanx_replica_epochs", "Lives that a replica has had.", labels=["replica"])
    failures = CounterMetricFamily(
        "phalanx_replica_failures", "Why a replica's lives ended, or could not begin.", labels=["replica", "reason"]
    )
    for replica in replicas:
        epochs.add_metric([str(replica.state.id)], replica.state.epoch)
        for reason in FAILURES:
            failures.add_metric([str(replica.state.id), reason], replica.failures.get(reason, 0))
    yield from (count, epochs, failures)


def _labelled(families: Iterable[Metric], replica: int | None) -> Iterator[Metric]:
    """The same with the replica as a further label."""
    for family in families:
        family.samples = [
            sample._replace(labels={"replica": str(replica), **sample.labels}) for sample in family.samples
        ]
        yield family
