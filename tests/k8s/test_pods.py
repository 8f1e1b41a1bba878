"""The laptop example is run as rendered: its pods in network namespaces, with their commands, volumes and probes.

Of Kubernetes there is what these files do: a kubelet's part, names of services, and what KubeRay adds to Ray's pods.
Network policies are not enforced; test_security.py reads them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.network import Machine
from tests.k8s.laptop import LAPTOP, READY_S, SETTINGS, laptop
from tests.k8s.release import Release
from tests.k8s.rendering import rendered
from tests.k8s.stream import Stream

pytestmark = [pytest.mark.slow, pytest.mark.smollm2, pytest.mark.timeout(1500)]


@pytest.fixture
def release(tmp_path: Path) -> Iterator[tuple[Release, Machine]]:
    with laptop(tmp_path) as made:
        yield made


def test_the_laptop_example_runs_and_outlives_what_happens_to_pods(
    release: tuple[Release, Machine], tmp_path: Path
) -> None:
    pods, client = release
    pods.deploy("head", "head")
    workers = [pods.deploy(f"worker-{number}", "worker") for number in range(2)]
    driver = pods.deploy("driver", "driver")
    gateways = [pods.deploy(f"gateway-{number}", "gateway") for number in range(2)]
    pods.until(lambda: driver.ready and all(gateway.ready for gateway in gateways), READY_S)

    ask = pods.deploy("ask", "test")
    pods.until(lambda: ask.container.starts == 1 and ask.container.code is not None, 120)
    assert ask.container.code == 0, ask.output
    assert "Paris" in ask.output

    def stream(tokens: int = 200) -> Stream:
        return Stream(pods, client, tmp_path, tokens)

    undisturbed = stream().rest()
    assert len(undisturbed) == 200

    # A worker's node is lost: whichever has the ranks.
    disturbed = stream()
    pods.until(lambda: len(disturbed.tokens()) > 20, 60)
    busy = next(worker for worker in workers if worker.container.run(["pgrep", "-f", "ray::RankActor"], 5))
    busy.kill()
    assert disturbed.rest() == undisturbed
    pods.deploy("worker-2", "worker", busy.machine)

    # A gateway's node is lost.
    for number, gateway in enumerate(gateways):
        disturbed = stream()
        pods.until(lambda disturbed=disturbed: len(disturbed.tokens()) > 20, 60)
        gateway.kill()
        assert disturbed.rest() == undisturbed
        again = pods.deploy(f"gateway-{number}", "gateway", gateway.machine)
        pods.until(lambda again=again: again.ready, 120)

    # The spec changes: another driver pod, while a stream runs.
    disturbed = stream(400)
    pods.until(lambda: len(disturbed.tokens()) > 20, 60)
    assert driver.end() < 10
    pods.upgrade(rendered(LAPTOP, *SETTINGS, "spec.max_running=9"))
    driver = pods.deploy("driver", "driver", driver.machine)
    pods.until(lambda: driver.ready, READY_S)
    assert "replacing its replicas" in driver.output
    assert disturbed.rest()[:200] == undisturbed

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
    pods.until(lambda: driver.ready and gateway.ready, READY_S)
    # Longer than the worker goes on by itself.
    undisturbed = Stream(pods, client, tmp_path, 900).rest()

    disturbed = Stream(pods, client, tmp_path, 900)
    pods.until(lambda: len(disturbed.tokens()) > 20, 60)
    head.kill()
    time.sleep(5)
    pods.deploy("head", "head", head.machine)
    pods.until(lambda: driver.container.starts > 1 and driver.ready, READY_S)
    assert disturbed.rest() == undisturbed
    assert worker.container.starts > 1
    assert gateway.container.starts == 1
    assert Stream(pods, client, tmp_path, 900).rest() == undisturbed

    # The end: a gateway that has nothing to do goes as soon as it is out of the service.
    assert gateway.end() < 15
    assert driver.end() < 10
