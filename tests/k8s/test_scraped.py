"""A Prometheus scrapes a deployment that works: alerts are silent, and every panel of the dashboard shows something."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from phalanx import Client
from tests.e2e.processes import free_port, running
from tests.k8s.monitoring import alerts, expressions, rules
from tests.k8s.rendering import NAMESPACE, RELEASE
from tests.prometheus import Prometheus, prometheus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_DATA_S = 240
_LABELS = {"namespace": NAMESPACE, "deployment": RELEASE}


def _empty(found: Prometheus) -> set[str]:
    """The panels of the dashboard that lack a number in one of their lines."""
    named = {rule["alert"] for rule in alerts()}
    return {
        title
        for title, texts in expressions().items()
        if title not in named
        for text in texts
        if not [sample for sample in found.query(text) if math.isfinite(float(sample["value"][1]))]
    }


def test_a_healthy_deployment_fills_the_dashboard_and_raises_no_alert(model: Path, tmp_path: Path) -> None:
    address, *shown = (f"127.0.0.1:{free_port()}" for _ in range(3))
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"model: {model}\ntp: 2\nreplicas: 2\ndtype: float32\nmax_model_len: 512\nkv_cache_tokens: 8192\n"
        f"listen: {address}\nmetrics_address: {shown[0]}\ncoordinator_metrics_address: {shown[1]}\n"
        "objectives: {ttft: 60s, tpot: 60s}\n"
    )
    with (
        running(["serve", str(spec)], tmp_path) as serve,
        prometheus(shown, tmp_path, _LABELS, rules()) as found,
    ):
        serve.wait_for("is ready at")
        deadline = time.monotonic() + _DATA_S
        with Client(address, timeout=60) as client:
            # Lines that repeat themselves, for the guesses of speculative decoding.
            while missing := _empty(found):
                assert time.monotonic() < deadline, f"{missing}\n{found.targets()}\n{serve.output}"
                client.generate("one two three " * 20, max_tokens=40, ignore_eos=True)
        assert found.targets() == [("up", "")] * 2
        assert {rule["name"] for rule in found.rules()} == {rule["alert"] for rule in alerts()}
        for rule in found.rules():
            assert rule["health"] == "ok", rule
            # Ranks that share cores may wait for each other.
            assert rule["state"] == "inactive" or rule["name"] == "PhalanxStragglingRank", rule
