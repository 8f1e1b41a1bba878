"""What a plan can use of a Ray cluster's nodes."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.topology import RayNode, topology_of
from partitioning.plan import PlanError


def _node(name: str, cpus: int = 4, gpus: int = 0, gpu_name: str | None = None) -> RayNode:
    return RayNode(name, name, "127.0.0.1", cpus, gpus, gpu_name, 8 << 30)


def _devices(nodes: list[RayNode], *arguments: Any) -> list[int]:
    return [len(node.devices) for node in topology_of(nodes, *arguments).nodes]


def test_cores_are_shared_out_among_the_ranks() -> None:
    assert _devices([_node("a", 8)], "auto", 2, 2) == [2]
    assert topology_of([_node("a", 8)], "auto", 2, 2).nodes[0].devices[0].threads == 4
    assert _devices([_node("a"), _node("b")], "cpu", 2, 4) == [2, 2]
    # One of the nodes cannot take its share, so the other one takes more.
    assert sum(_devices([_node("a", 1), _node("b", 6)], "cpu", 2, 4)) >= 4


def test_without_degrees_every_core_is_a_device() -> None:
    assert _devices([_node("a", 3), _node("b", 0), _node("c", 2)], "auto", None, None) == [3, 2]


def test_gpus_are_taken_where_there_are_any() -> None:
    nodes = [_node("a"), _node("b", gpus=2, gpu_name="H100")]
    topology = topology_of(nodes, "auto", 2, 2)
    assert [node.name for node in topology.nodes] == ["b"]
    assert topology.nodes[0].devices[0].kind == "cuda"
    assert _devices(nodes, "cpu", 1, 2) == [1, 1]


def test_what_is_missing_is_said() -> None:
    with pytest.raises(PlanError, match="no node of the cluster has a free GPU"):
        topology_of([_node("a")], "cuda", 1, 1)
    with pytest.raises(PlanError, match=r"no node of the cluster \(1 in all\) has a free CPU"):
        topology_of([_node("a", 0)], "auto", 1, 1)
    with pytest.raises(PlanError, match="what GPUs a has"):
        topology_of([_node("a", gpus=1)], "auto", 1, 1)
