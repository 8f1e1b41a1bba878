"""What alerts and dashboards ask for: Prometheus understands it, and there are metrics of that name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from k8s.dashboard import FILE, dashboard
from k8s.dashboard import written as written_dashboard
from tests.k8s.monitoring import DASHBOARDS, expressions, metric_of, written
from tests.k8s.rendering import CHART
from tests.prometheus import program

_METRICS = CHART.parents[1] / "docs/metrics.md"
_SERIES = re.compile(r"\bphalanx_\w+")


def test_the_dashboard_is_that_of_the_panels() -> None:
    assert DASHBOARDS == [FILE]
    assert FILE.read_text() == written_dashboard(), "the panels have changed: python -m k8s.dashboard"


def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    every = [text for texts in expressions().values() for text in texts]
    assert len(every) > 40
    assert not [text for text in every if "$" in text or "@" in text]
    rules = [{"record": f"expression:{number}", "expr": text} for number, text in enumerate(every)]
    file = written(tmp_path, {"groups": [{"name": "all", "rules": rules}]})
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(file)], capture_output=True, text=True, check=False, timeout=60
    )
    assert f"{len(every)} rules found" in done.stdout, done.stdout + done.stderr


def test_every_metric_is_one_that_the_documentation_names() -> None:
    known = set(_SERIES.findall(_METRICS.read_text()))
    asked = [text for texts in expressions().values() for text in texts]
    asked += [str(variable["query"]) for variable in dashboard()["templating"]["list"]]
    found = {metric_of(series) for text in asked for series in _SERIES.findall(text)}
    assert len(found) > 20
    assert found <= known


def test_panels_lie_beside_each_other() -> None:
    """Each on free places of Grafana's grid of 24 columns, with an id of its own."""
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    for panel in panels:
        at = panel["gridPos"]
        places = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & places, panel["title"]
        assert max(x for x, _ in places) < 24
        taken |= places
    assert len({panel["id"] for panel in panels}) == len(panels)
