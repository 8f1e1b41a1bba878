"""`phalanx doctor --cluster` on a real Ray cluster of two nodes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.authority import Authority
from tests.e2e.clusters import further_node, ray_cluster_of
from tests.e2e.processes import COMMAND, ROOT, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with ray_cluster_of(2, tmp_path_factory.mktemp("ray")) as environment, further_node(environment, 2):
        yield environment


def _examined(spec: Path, cluster: dict[str, str], code: int) -> dict[str, list[dict[str, Any]]]:
    """The findings by where, once both nodes are there."""
    command = [*COMMAND, "doctor", str(spec), "--cluster", "--json"]
    for _ in range(20):
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **cluster}, capture_output=True, text=True, check=False
        )
        if "examining 2 nodes" in done.stderr:
            break
        time.sleep(1)
    assert done.returncode == code, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] == (code == 0)
    places: dict[str, list[dict[str, Any]]] = {}
    for finding in report["findings"]:
        places.setdefault(finding["where"], []).append(finding)
    return places


def test_a_cluster_that_is_fine(model: Path, tmp_path: Path, two_nodes: dict[str, str]) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"model: {model}\nreplicas: 2\nkv_cache_tokens: 4096\nlisten: 127.0.0.1:{free_port()}\n")
    places = _examined(spec, two_nodes, 0)
    assert len(places) == 4  # the gateway's machine, two nodes, and the cluster as one
    texts = {finding["check"]: finding["text"] for finding in places["the cluster"]}
    assert texts["versions"] == "the same on all 2 nodes"
    assert "Gbit/s" in texts["links"]
    assert texts["model"].startswith("the same on 2 nodes")
    assert texts["Ray token"].endswith("has one")
    assert all(name.count(" 1") for name in texts["plan"].partition("ranks: ")[2].split(", ")), texts["plan"]


def test_what_is_wrong_is_found_on_every_node(model: Path, tmp_path: Path, two_nodes: dict[str, str]) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.issue("node")
    _, key = authority.issue("other")
    spec = tmp_path / "spec.yaml"
    with socket.create_server(("0.0.0.0", 0)) as taken:
        spec.write_text(
            f"model: {model}\ntp: 4\nkv_cache_tokens: 4096\nlisten: 127.0.0.1:{free_port()}\n"
            f"registry_listen: :{taken.getsockname()[1]}\n"
            f"internal_tls: {{certificate: {certificate}, key: {key}, ca: {authority.file}}}\n"
        )
        places = _examined(spec, two_nodes, 1)
    nodes = [findings for where, findings in places.items() if where.startswith(socket.gethostname())]
    assert len(nodes) == 2
    for findings in nodes:
        bad = {finding["check"] for finding in findings if finding["level"] == "failed"}
        assert bad == {"ports", "certificates"}
        assert all(finding["remedy"] for finding in findings if finding["level"] != "ok")
