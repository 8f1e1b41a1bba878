"""docs/metrics.md and the code name the same metrics, of the same types and labels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase

from cluster.metrics.coordinator import FAILURES, CoordinatorMetrics
from cluster.metrics.gateway import REFUSALS, GatewayMetrics
from workers.observation.build_info import BuildInfo
from workers.observation.metrics import RankMetrics

_DOCS = (Path(__file__).resolve().parent.parent / "docs" / "metrics.md").read_text()
_ROW = re.compile(r"^\| `(phalanx_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)

Described = set[tuple[str, str, frozenset[str]]]


def test_gateways() -> None:
    collectors = GatewayMetrics().registry._collector_to_names
    own = {collector for collector in collectors if isinstance(collector, MetricWrapperBase)}
    assert {type(collector) for collector in collectors.keys() - own} == {BuildInfo}
    assert _written("Gateways") == {_row(c._name, c._type, c._labelnames) for c in own}


def test_replicas() -> None:
    assert _written("Replicas") == _described(RankMetrics.describe(), "replica") - _described(
        BuildInfo().collect(), "replica"
    )


def test_the_coordinator() -> None:
    of_ranks = {family.name for family in RankMetrics.describe()}
    own = [family for family in CoordinatorMetrics.describe() if family.name not in of_ranks]
    assert _written("The coordinator") == _described(own)


def test_every_process() -> None:
    assert _written("Every process") == _described(BuildInfo().collect())


def test_reasons() -> None:
    assert all(f"`{reason}`" in _DOCS for reason in (*FAILURES, *REFUSALS))


def _written(section: str) -> Described:
    text = _DOCS.partition(f"### {section}\n")[2].partition("\n### ")[0]
    rows = {(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in _ROW.findall(text)}
    assert rows, f"docs/metrics.md has no table of {section}"
    return rows


def _described(families: Iterable[Metric], *more: str) -> Described:
    return {_row(family.name, family.type, (*family._labelnames, *more)) for family in families}  # type: ignore[attr-defined]


def _row(name: str, kind: str, labels: Iterable[str]) -> tuple[str, str, frozenset[str]]:
    return f"{name}_total" if kind == "counter" else name, kind, frozenset(labels)
