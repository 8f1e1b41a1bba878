"""The laptop example on the image that `make image` builds, as rendered: user, limits, read-only root, commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.k8s.laptop import LAPTOP, READY_S, laptop
from tests.k8s.podman_container import PodmanContainer, missing
from tests.k8s.rendering import pods, rendered
from tests.k8s.stream import Stream

pytestmark = [pytest.mark.slow, pytest.mark.smollm2, pytest.mark.timeout(1200)]


def test_the_laptop_example_runs_on_the_built_image(tmp_path: Path) -> None:
    (image,) = {container["image"] for pod in pods(rendered(LAPTOP)) for container in pod.containers}
    if (reason := missing(image)) is not None:
        pytest.skip(reason)
    with laptop(tmp_path, image=PodmanContainer) as (release, client):
        release.deploy("head", "head")
        workers = [release.deploy(f"worker-{number}", "worker") for number in range(2)]
        driver, gateway = release.deploy("driver", "driver"), release.deploy("gateway", "gateway")
        release.until(lambda: driver.ready and gateway.ready, 2 * READY_S)

        ask = release.deploy("ask", "test")
        release.until(lambda: ask.container.starts == 1 and ask.container.code is not None, 120)
        assert ask.container.code == 0, ask.output
        assert "Paris" in ask.output

        undisturbed = Stream(release, client, tmp_path, 200).rest()
        disturbed = Stream(release, client, tmp_path, 200)
        release.until(lambda: len(disturbed.tokens()) > 20, 60)
        busy = next(worker for worker in workers if worker.container.run(["sh", "-c", _HAS_RANKS], 10))
        busy.kill()
        assert disturbed.rest() == undisturbed

        release.uninstall()
        assert release.processes() == []


# The image has no pgrep.
_HAS_RANKS = "grep -l ray::RankActor /proc/[0-9]*/cmdline"
