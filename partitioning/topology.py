"""The machines a plan is made for: nodes, their devices, and the links between them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from partitioning.host_speed import ASSUMED, HostSpeed
from partitioning.plan import PlanError

DeviceKind = Literal["cpu", "cuda"]

# A plan lists every device; a count beyond this is a slip of the keyboard rather than a machine or a cluster.
MOST_DEVICES = 100_000


@dataclass(frozen=True)
class Link:
    """How ranks reach each other: bytes a second in one direction for one rank, and seconds for an empty message."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class DeviceSpec:
    """What one rank runs on: a GPU, or a share of a host's cores and memory.

    `memory_bandwidth` is in bytes a second, `flops` are dense bf16 operations a second, `threads` the CPU threads
    that a rank on it may use.
    """

    kind: DeviceKind
    name: str
    memory_bytes: int
    memory_bandwidth: float
    flops: float
    threads: int


@dataclass(frozen=True)
class NodeSpec:
    """One machine: its devices, and the link between them. `cores` and their `speed` are what CPU devices share."""

    name: str
    devices: tuple[DeviceSpec, ...]
    link: Link
    cores: int = 0
    speed: HostSpeed = ASSUMED


@dataclass(frozen=True)
class Topology:
    """All machines, and the network between them (as seen by one rank)."""

    nodes: tuple[NodeSpec, ...]
    network: Link

    @property
    def device_count(self) -> int:
        return sum(len(node.devices) for node in self.nodes)

    def shared_by(self, ranks: int) -> Topology:
        """The same hosts with their cores and memory dealt anew, for `ranks` ranks in all. GPUs stay what they are."""
        if any(device.kind != "cpu" for node in self.nodes for device in node.devices):
            return self
        each = -(-ranks // len(self.nodes))
        return Topology(
            tuple(
                cpu_node(
                    node.name,
                    each,
                    cores=node.cores,
                    memory_bytes=sum(device.memory_bytes for device in node.devices),
                    speed=node.speed,
                )
                for node in self.nodes
            ),
            self.network,
        )

    def node(self, name: str) -> NodeSpec:
        return next(node for node in self.nodes if node.name == name)


# Through memory shared by the processes of one host: a copy in and a copy out, and a spin on a flag.
SHARED_MEMORY = Link(bandwidth=5e9, latency=5e-6)
# 10 gigabit Ethernet over TCP, the usual link between CPU hosts.
ETHERNET = Link(bandwidth=1.25e9, latency=100e-6)


def usable_cores() -> int:
    """CPU cores this process may run on: its affinity, or the container's quota where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _cgroup_words("cpu.max")
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def usable_memory() -> int:
    """Bytes of host memory that are free to use, within the container's limit."""
    available = psutil.virtual_memory().available
    limit, used = _cgroup_words("memory.max"), _cgroup_words("memory.current")
    if limit and used and limit[0] != "max":
        available = min(available, int(limit[0]) - int(used[0]))
    return max(0, available)


def _cgroup_words(name: str) -> list[str]:
    """The words of one control file of this container (cgroup v2); none where there is no such file."""
    path = Path("/sys/fs/cgroup") / name
    return path.read_text().split() if path.is_file() else []


def cpu_node(name: str, ranks: int, cores: int, memory_bytes: int, speed: HostSpeed = ASSUMED) -> NodeSpec:
    """A CPU host whose cores and memory are shared evenly by `ranks` ranks (which may outnumber the cores).

    Raises:
        PlanError: a number of ranks that no host has.
    """
    if ranks < 1:
        raise PlanError(f"a node needs at least one rank, got {ranks}: tp, pp and replicas must be at least 1")
    if ranks > MOST_DEVICES:
        raise PlanError(f"{ranks:,} ranks on one host are more than {MOST_DEVICES:,}: lower tp, pp or replicas")
    device = DeviceSpec(
        kind="cpu",
        name="CPU",
        memory_bytes=memory_bytes // ranks,
        memory_bandwidth=min(cores * speed.core_bandwidth, speed.host_bandwidth) / ranks,
        flops=cores * speed.core_flops / ranks,
        threads=max(1, cores // ranks),
    )
    return NodeSpec(name, (device,) * ranks, SHARED_MEMORY, cores, speed)


def local_topology(ranks: int, speed: HostSpeed = ASSUMED, cores: int | None = None) -> Topology:
    """This machine's CPU, shared by `ranks` ranks, as if it had so many `cores`, or with those it has; `speed` comes
    from `host_speed`."""
    return Topology((cpu_node("localhost", ranks, cores or usable_cores(), usable_memory(), speed),), ETHERNET)
