"""A release on a Ray cluster that is there: it serves, and uninstalling it leaves that cluster as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.k8s.kubelet import RunningPod
from tests.k8s.laptop import LAPTOP, READY_S, SETTINGS, laptop
from tests.k8s.rendering import named, rendered
from tests.k8s.stream import Stream

pytestmark = [pytest.mark.slow, pytest.mark.smollm2, pytest.mark.timeout(900)]

_JOINS = ("ray.address=http://llm-head-svc:8265", "ray.registryHost=llm-registry", "ray.auth.existingSecret=llm-ray")


def _works_for_the_deployment(node: RunningPod) -> bool:
    return node.container.run(["pgrep", "-f", "^ray::.*(RankActor|Coordinator)"], 10)


def test_uninstalling_from_a_ray_cluster_that_is_there_ends_the_deployment_alone(tmp_path: Path) -> None:
    own = rendered(LAPTOP, *SETTINGS)
    there = tuple(
        named(own, kind, name)
        for kind, name in (("RayCluster", "llm"), ("Service", "llm-registry"), ("Secret", "llm-ray"))
    )
    with laptop(tmp_path, *_JOINS, others=there) as (pods, client):
        nodes = [pods.deploy("head", "head"), pods.deploy("worker", "worker")]
        driver, gateway = pods.deploy("driver", "driver"), pods.deploy("gateway", "gateway")
        pods.until(lambda: driver.ready and gateway.ready, READY_S)
        assert len(Stream(pods, client, tmp_path, 40).rest()) == 40
        assert any(_works_for_the_deployment(node) for node in nodes)

        # Before anything is deleted.
        stop = pods.deploy("stop", "stop")
        pods.until(lambda: stop.container.starts == 1 and stop.container.code is not None, 120)
        assert stop.container.code == 0, stop.output
        driver.end()
        gateway.end()
        assert not any(_works_for_the_deployment(node) for node in nodes)
        assert [(node.container.starts, node.container.code) for node in nodes] == [(1, None)] * 2
