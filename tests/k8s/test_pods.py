"""The laptop example is run as rendered: its pods in network namespaces, with their commands, volumes and probes.

Of Kubernetes there is what these files do: a kubelet's part, names of services, and what KubeRay adds to Ray's pods.
Network policies are not enforced; test_security.py reads them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from cluster.models import KNOWN_MODELS
from tests.chaos.network import Machine, NoNetworks, machines
from tests.k8s.container import ROOT
from tests.k8s.release import Release
from tests.k8s.rendering import CHART, rendered
from workers.native.build import BuildError, prebuild

pytestmark = [pytest.mark.slow, pytest.mark.smollm2, pytest.mark.timeout(1500)]

_LAPTOP = CHART / "examples/laptop.yaml"
# Exact in every batch, and with a second worker to move to.
_SETTINGS = (
    "spec.dtype=float32", "spec.max_model_len=1024", "spec.kv_cache_tokens=8192", "ray.workerGroups[0].replicas=2",
    "driver.registryTimeoutSeconds=20",
)  # fmt: skip
_READY_S = 240
_STREAM = """
import json, sys
from phalanx import Client
with Client(sys.argv[1], timeout=400) as client:
    options = {"max_tokens": int(sys.argv[2]), "ignore_eos": True, "temperature": 0.8, "seed": 5}
    for chunk in client.stream("Once upon a time", **options):
        print(json.dumps(list(chunk.token_ids)), flush=True)
"""


class Stream:
    """A stream through the headless service, by a client on a machine of its own."""

    def __init__(self, release: Release, machine: Machine, tokens: int, folder: Path) -> None:
        self._log = folder / f"stream-{time.monotonic_ns()}.log"
        names = f'mount --bind {release.hosts} /etc/hosts && exec "$@"'
        enter = [*machine.inside, "unshare", "--mount", "sh", "-c", names, "sh"]
        command = [sys.executable, "-c", _STREAM, "llm-headless.models.svc:50051", str(tokens)]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*enter, *command], stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/proto"}
            )

    def tokens(self) -> list[int]:
        """Those that have come."""
        lines = self._log.read_text().split("\n")[:-1]
        return [token for line in lines if line.startswith("[") for token in json.loads(line)]

    def rest(self, release: Release) -> list[int]:
        """All of them."""
        release.until(lambda: self.process.poll() is not None, 400)
        assert self.process.returncode == 0, self._log.read_text() + release.log()
        return self.tokens()


@pytest.fixture
def release(tmp_path: Path) -> Iterator[tuple[Release, Machine]]:
    """Everything but its pods, and a machine for clients."""
    if os.geteuid():
        pytest.skip("needs root, for network namespaces and mounts")
    model = KNOWN_MODELS["smollm2"]
    assert model.is_pulled
    models = tmp_path / "models" / "models" / model.name
    models.mkdir(parents=True)
    shutil.copy(model.path, models)
    try:
        kernels = user_cache_path("phalanx") / "prebuilt"
        prebuild(kernels)
        with machines([f"m{number}" for number in range(9)]) as made:
            for machine in made:
                subprocess.run([*machine.inside, "ip", "route", "add", "default", "dev", "eth0"], check=True)
            running = Release(rendered(_LAPTOP, *_SETTINGS), made[1:], tmp_path / "models", kernels, tmp_path)
            try:
                yield running, made[0]
            finally:
                running.stop()
    except (NoNetworks, BuildError) as error:
        pytest.skip(str(error))


def test_the_laptop_example_runs_and_outlives_what_happens_to_pods(
    release: tuple[Release, Machine], tmp_path: Path
) -> None:
    pods, client = release
    pods.deploy("head", "head")
    workers = [pods.deploy(f"worker-{number}", "worker") for number in range(2)]
    driver = pods.deploy("driver", "driver")
    gateways = [pods.deploy(f"gateway-{number}", "gateway") for number in range(2)]
    pods.until(lambda: driver.ready and all(gateway.ready for gateway in gateways), _READY_S)

    ask = pods.deploy("ask", "test")
    pods.until(lambda: ask.container.starts == 1 and ask.container.code is not None, 120)
    assert ask.container.code == 0, ask.output
    assert "Paris" in ask.output

    def stream(tokens: int = 200) -> Stream:
        return Stream(pods, client, tokens, tmp_path)

    undisturbed = stream().rest(pods)
    assert len(undisturbed) == 200

    # A worker's node is lost: whichever has the ranks.
    disturbed = stream()
    pods.until(lambda: len(disturbed.tokens()) > 20, 60)
    busy = next(worker for worker in workers if worker.container.run(["pgrep", "-f", "ray::RankActor"], 5))
    busy.kill()
    assert disturbed.rest(pods) == undisturbed
    pods.deploy("worker-2", "worker", busy.machine)

    # A gateway's node is lost.
    for number, gateway in enumerate(gateways):
        disturbed = stream()
        pods.until(lambda disturbed=disturbed: len(disturbed.tokens()) > 20, 60)
        gateway.kill()
        assert disturbed.rest(pods) == undisturbed
        again = pods.deploy(f"gateway-{number}", "gateway", gateway.machine)
        pods.until(lambda again=again: again.ready, 120)

    # The spec changes: another driver pod, while a stream runs.
    disturbed = stream(400)
    pods.until(lambda: len(disturbed.tokens()) > 20, 60)
    assert driver.end() < 10
    pods.upgrade(rendered(_LAPTOP, *_SETTINGS, "spec.max_running=9"))
    driver = pods.deploy("driver", "driver", driver.machine)
    pods.until(lambda: driver.ready, _READY_S)
    assert "replacing its replicas" in driver.output
    assert disturbed.rest(pods)[:200] == undisturbed

    # A driver that comes back changes nothing.
    assert driver.end() < 10
    driver = pods.deploy("driver", "driver", driver.machine)
    pods.until(lambda: driver.ready, 120)
    assert "runs already, from this spec" in driver.output


def test_a_lost_head_is_a_pause(release: tuple[Release, Machine], tmp_path: Path) -> None:
    pods, client = release
    head = pods.deploy("head", "head")
    worker = pods.deploy("worker", "worker")
    driver, gateway = pods.deploy("driver", "driver"), pods.deploy("gateway", "gateway")
    pods.until(lambda: driver.ready and gateway.ready, _READY_S)
    # Longer than the worker goes on by itself.
    undisturbed = Stream(pods, client, 900, tmp_path).rest(pods)

    disturbed = Stream(pods, client, 900, tmp_path)
    pods.until(lambda: len(disturbed.tokens()) > 20, 60)
    head.kill()
    time.sleep(5)
    pods.deploy("head", "head", head.machine)
    pods.until(lambda: driver.container.starts > 1 and driver.ready, _READY_S)
    assert disturbed.rest(pods) == undisturbed
    assert worker.container.starts > 1
    assert gateway.container.starts == 1
    assert Stream(pods, client, 900, tmp_path).rest(pods) == undisturbed

    # The end: a gateway that has nothing to do goes as soon as it is out of the service.
    assert gateway.end() < 15
    assert driver.end() < 10
