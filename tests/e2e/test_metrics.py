"""A real Prometheus scrapes a real deployment, which loses a rank and its coordinator meanwhile."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from phalanx import Client
from tests.e2e.processes import free_port, running
from tests.prometheus import prometheus
from tests.scraped import Scraped

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus and promtool (Debian: prometheus)"),
    pytest.mark.timeout(600),
]

_PATIENCE_S = 120

_EXPRESSIONS = (
    "histogram_quantile(0.95, sum by (le, tenant) (rate(phalanx_request_ttft_seconds_bucket[1m])))",
    "sum(rate(phalanx_completion_tokens_total[1m])) > 0",
    "phalanx_gateway_replicas == 1",
    "phalanx_replicas{state='ready'} == 1",
    "rate(phalanx_step_seconds_sum{part='forward'}[1m]) / rate(phalanx_step_seconds_count{part='forward'}[1m])",
    "sum by (replica) (phalanx_kv_blocks) > 0",
    "count(phalanx_rank_collective_seconds_total{replica='0'}) == 2",
    "count(phalanx_device_memory_bytes{kind='resident'}) == 2",
    "count(phalanx_build_info) == 3",
)


def test_prometheus_sees_a_deployment_through_the_loss_of_a_rank_and_of_its_coordinator(
    model: Path, tmp_path: Path
) -> None:
    gateway, coordinator = addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    listen = f"127.0.0.1:{free_port()}"
    options = ["--tp", "2", "--dtype", "float32", "--max-model-len", "512", "--kv-cache-tokens", "4096"]
    shown = ["--metrics-address", gateway, "--coordinator-metrics-address", coordinator]
    with running(["serve", str(model), *options, "--listen", listen, *shown], tmp_path) as deployment:
        deployment.wait_for("is ready at")
        with prometheus(addresses, tmp_path) as watcher, Client(listen, timeout=60) as client:

            def holds(expression: str) -> bool:
                return bool(watcher.query(expression))

            def holds_while_used(expression: str) -> bool:
                client.generate("once", max_tokens=4, ignore_eos=True)
                return holds(expression)

            _until(lambda: watcher.targets() == [("up", "")] * 2)
            for expression in _EXPRESSIONS:
                _until(partial(holds_while_used, expression))
            for address in addresses:
                check = ["promtool", "check", "metrics"]
                checked = subprocess.run(check, input=_text(address), capture_output=True, text=True)
                assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

            psutil.Process(client.cluster().replicas[0].replica.ranks[1].pid).kill()
            _until(partial(holds, "phalanx_replica_epochs_total == 2"))
            _until(partial(holds, "phalanx_replicas{state='ready'} == 1"))
            told = Scraped(_text(coordinator))
            assert told.value("phalanx_replica_failures_total", replica="0", reason="rank_lost") == 1
            assert told.sum("phalanx_replica_failures_total") == 1

            (before,) = _coordinators(deployment.family())
            before.kill()
            _until(lambda: [process for process in _coordinators(deployment.family()) if process != before])
            _until(lambda: Scraped(_text(coordinator)).value("phalanx_replicas", state="ready") == 1)
            told = Scraped(_text(coordinator))
            assert told.value("phalanx_replica_epochs_total", replica="0") == 2
            assert told.value("phalanx_generated_tokens_total", replica="0") > 0


def _text(address: str) -> str:
    with urlopen(f"http://{address}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def _coordinators(family: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in family:
        with suppress(psutil.Error):  # it has just ended
            if "ray::Coordinator" in " ".join(process.cmdline()):
                found.append(process)
    return found


def _until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(URLError, ConnectionError):  # not up yet
            if holds():
                return
        time.sleep(0.5)
    raise AssertionError("it did not come true in time")
