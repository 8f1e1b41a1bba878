"""What the Ray cluster has: its nodes and their free devices."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray._private.state import available_resources_per_node

from partitioning.devices import gpu
from partitioning.host_speed import ASSUMED, HostSpeed
from partitioning.plan import PlanError
from partitioning.topology import ETHERNET, NodeSpec, Topology, cpu_node

_ACCELERATOR = "accelerator_type:"
_PROBE_S = 1.0


@dataclass(frozen=True)
class RayNode:
    """A live node. `cpus`, `gpus` and `memory_bytes` are what nobody else has reserved."""

    name: str
    node_id: str
    address: str
    cpus: int
    gpus: int
    gpu_name: str | None
    memory_bytes: int


def ray_nodes() -> list[RayNode]:
    """The live nodes of the cluster this process is connected to, by name.

    Ray takes up to a minute to declare a dead node dead; so each is asked whether its raylet still listens.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) > 1:
        with ThreadPoolExecutor(min(len(alive), 64)) as pool:
            answers = list(pool.map(_answers, alive))
        alive = [node for node, answered in zip(alive, answers, strict=True) if answered]
    # Ray's public API knows what is free in all, not where.
    free = available_resources_per_node()
    hostnames = [node["NodeManagerHostname"] for node in alive]
    nodes = []
    for node in alive:
        node_id, hostname = node["NodeID"], node["NodeManagerHostname"]
        left = free.get(node_id, {})
        nodes.append(
            RayNode(
                name=hostname if hostnames.count(hostname) == 1 else f"{hostname}-{node_id[:6]}",
                node_id=node_id,
                address=node["NodeManagerAddress"],
                cpus=int(left.get("CPU", 0)),
                gpus=int(left.get("GPU", 0)),
                gpu_name=next(
                    (key.removeprefix(_ACCELERATOR) for key in node["Resources"] if key.startswith(_ACCELERATOR)), None
                ),
                memory_bytes=int(left.get("memory", 0)),
            )
        )
    return sorted(nodes, key=lambda node: node.name)


def _answers(node: dict[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _PROBE_S).close()
    except OSError:
        return False
    return True


def topology_of(
    nodes: Sequence[RayNode],
    devices: Literal["auto", "cpu", "cuda"],
    tp: int | None,
    ranks: int | None,
    speed: HostSpeed = ASSUMED,
) -> Topology:
    """The nodes' devices; `speed` is that of a CPU node. Cores are shared out so that `ranks` ranks fit, and the `tp`
    ranks of a stage on one node if they can; without these, every core is a device of its own.

    Raises:
        PlanError: GPUs were asked for and there are none, or no node has a free core.
    """
    if devices == "cuda" or (devices == "auto" and any(node.gpus for node in nodes)):
        return _gpus(nodes)
    hosts = [node for node in nodes if node.cpus]
    if not hosts:
        raise PlanError(
            f"no node of the cluster ({len(nodes)} in all) has a free CPU: they were started with none, or other jobs "
            "have reserved them. Add nodes, or wait for these jobs"
        )
    if ranks is None or tp is None:
        each = [node.cpus for node in hosts]
    else:
        share = max(tp, -(-ranks // len(hosts)))
        each = [min(node.cpus, share) for node in hosts]
        if sum(each) < ranks:
            each = [node.cpus for node in hosts]
    specs = [
        cpu_node(node.name, count, node.cpus, node.memory_bytes, speed) for node, count in zip(hosts, each, strict=True)
    ]
    return Topology(tuple(specs), ETHERNET)


def _gpus(nodes: Sequence[RayNode]) -> Topology:
    specs = []
    for node in nodes:
        if node.gpus:
            if node.gpu_name is None:
                raise PlanError(f"Ray does not say what GPUs {node.name} has: start it with an accelerator_type")
            device, link = gpu(node.gpu_name)
            specs.append(NodeSpec(node.name, (device,) * node.gpus, link))
    if not specs:
        raise PlanError("no node of the cluster has a free GPU: serve with devices: cpu, or add nodes")
    # The slowest network that GPU nodes usually have; Ray does not know it.
    return Topology(tuple(specs), ETHERNET)
