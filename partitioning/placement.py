"""Which device every rank runs on."""

from __future__ import annotations

from dataclasses import dataclass

from partitioning.plan import PlanError
from partitioning.topology import DeviceSpec, Topology


@dataclass(frozen=True)
class Place:
    """One device of one node; `index` counts the devices of the node."""

    node: str
    index: int
    device: DeviceSpec

    @property
    def name(self) -> str:
        """The device's name on its node, as torch writes it: "cpu:0", "cuda:3"."""
        return f"{self.device.kind}:{self.index}"


def place_ranks(topology: Topology, tp: int, pp: int, replicas: int) -> list[list[Place]]:
    """The places of the ranks, by (stage, tp_rank), of each replica.

    A stage goes to the node of the stage before it when it fits there, else to the quickest node it fits on (of
    equals the one it fills best), and over several nodes, the emptiest first, only when it fits on none.

    Raises:
        PlanError: there are fewer devices than ranks.
    """
    needed = tp * pp * replicas
    if needed > topology.device_count:
        raise PlanError(
            f"tp={tp} × pp={pp} × replicas={replicas} needs {needed} devices, the cluster has {topology.device_count} "
            f"({_inventory(topology)}): {needed - topology.device_count} are missing. "
            "Add nodes or devices, or lower tp, pp or replicas"
        )
    free = {
        node.name: [Place(node.name, index, device) for index, device in enumerate(node.devices)]
        for node in topology.nodes
    }
    return [_place_replica(free, tp, pp) for _ in range(replicas)]


def _place_replica(free: dict[str, list[Place]], tp: int, pp: int) -> list[Place]:
    places: list[Place] = []
    for _ in range(pp):
        last = places[-1].node if places else None
        roomy = [name for name, left in free.items() if len(left) >= tp]
        if last in roomy:
            nodes = [last]
        elif roomy:
            nodes = [min(roomy, key=lambda name: (-free[name][0].device.memory_bandwidth, len(free[name])))]
        else:
            nodes = sorted(free, key=lambda name: -len(free[name]))
        missing = tp
        for name in nodes:
            taken, free[name] = free[name][:missing], free[name][missing:]
            places.extend(taken)
            missing -= len(taken)
    return places


def _inventory(topology: Topology) -> str:
    """What there is in few words, whatever the number of nodes: "16 nodes with 128 × H100"."""
    counts: dict[str, int] = {}
    for node in topology.nodes:
        for device in node.devices:
            counts[device.name] = counts.get(device.name, 0) + 1
    devices = ", ".join(f"{count} × {name}" for name, count in counts.items())
    return f"{len(topology.nodes)} node{'s' if len(topology.nodes) != 1 else ''} with {devices or 'no devices'}"
