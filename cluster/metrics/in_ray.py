"""The same metrics as Ray's own custom ones, at the ports that Ray's service discovery names.

Ray puts `ray_` before a name. Its histograms can only observe, so the buckets, sums and counts of ours are counters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from ray.util import metrics

log = logging.getLogger(__name__)

_EVERY_S = 5.0  # Ray's agents pass on what they have about as often


class InRay:
    """Hands on what `collector` has, every few seconds."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._known: dict[str, Any] = {}  # Ray's metric, by name
        self._counted: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    async def keep(self) -> None:
        while True:
            try:
                self._hand_on(await asyncio.to_thread(lambda: list(self._collector.collect())))
            except TimeoutError:
                log.warning("replicas do not answer what their metrics are")
            await asyncio.sleep(_EVERY_S)

    def _hand_on(self, families: Iterable[Metric]) -> None:
        for family in families:
            for sample in family.samples:
                if family.type == "gauge":
                    self._of(metrics.Gauge, sample.name, family, sample).set(sample.value, sample.labels)
                else:
                    self._count(family, sample)

    def _count(self, family: Metric, sample: Sample) -> None:
        """By how much it has grown; what is less than before has begun anew."""
        key = sample.name, tuple(sorted(sample.labels.items()))
        before = self._counted.get(key, 0.0)
        self._counted[key] = sample.value
        if (more := sample.value - before if sample.value >= before else sample.value) > 0:
            # Ray writes the ending itself.
            counter = self._of(metrics.Counter, sample.name.removesuffix("_total"), family, sample)
            counter.inc(more, sample.labels)

    def _of(self, kind: Any, name: str, family: Metric, sample: Sample) -> Any:
        if name not in self._known:
            self._known[name] = kind(name, family.documentation, tuple(sample.labels))
        return self._known[name]
