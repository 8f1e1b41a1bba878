"""A coordinator's metrics at the ports that Ray's service discovery names."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from phalanx import Client
from tests.e2e.processes import free_port, running

pytestmark = pytest.mark.slow  # Ray hands metrics on every ten seconds

_PATIENCE_S = 90


def _samples(cluster: dict[str, str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """What there is at all ports of the file that Ray writes."""
    file = Path(cluster["FOLDER"]) / "prom_metrics_service_discovery.json"
    for group in json.loads(file.read_text()):
        for target in group["targets"]:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                for family in text_string_to_metric_families(answer.read().decode()):
                    for sample in family.samples:
                        yield sample.name, sample.labels, sample.value


def _until(cluster: dict[str, str], name: str, least: float, **labels: str) -> float:
    """Waits for a sample with these labels and such a value, summed over the processes that have told of it."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        found = [value for one, own, value in _samples(cluster) if one == name and labels.items() <= own.items()]
        if found and sum(found) >= least:
            return sum(found)
        assert time.monotonic() < deadline, (name, found)
        time.sleep(1)


@pytest.mark.timeout(300)
def test_rays_own_metrics_have_those_of_the_deployment(
    model: Path, tmp_path: Path, ray_cluster: dict[str, str]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    spec = tmp_path / "spec.yaml"
    lines = [f"model: {model}", f"listen: {address}", "dtype: float32", "max_model_len: 512", "kv_cache_tokens: 4096"]
    spec.write_text("\n".join([*lines, "tp: 2", "ray_metrics: true"]))
    with running(["serve", str(spec)], tmp_path, **ray_cluster) as serve:
        serve.wait_for("is ready at")
        assert _until(ray_cluster, "ray_phalanx_replicas", 1, state="ready") == 1
        before = _until(ray_cluster, "ray_phalanx_generated_tokens_total", 0, replica="0")
        with Client(address, timeout=60) as client:
            client.generate("once", max_tokens=40, ignore_eos=True)
        _until(ray_cluster, "ray_phalanx_generated_tokens_total", before + 40, replica="0")
        steps = _until(ray_cluster, "ray_phalanx_step_seconds_count_total", 10, part="forward")
        assert _until(ray_cluster, "ray_phalanx_step_seconds_bucket_total", steps, part="forward", le="+Inf") >= steps
        _until(ray_cluster, "ray_phalanx_rank_collective_seconds_total", 0, rank="1")
