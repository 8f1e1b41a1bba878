"""What can happen to a cluster. Each fault is begun and, after some seconds, mended as far as it can be."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from phalanx.v1 import admin_pb2
from tests.chaos.cluster import Cluster, signal_all

Mend = Callable[[], None]


@dataclass(frozen=True)
class Fault:
    """`begin` gets the cluster, its state as a gateway sees it, and the dice; it returns how to mend it, or None when
    there was nothing to hurt. It is mended after `seconds` (from, to). A `grave` one costs a replica its epoch, and
    waits until every replica is ready."""

    name: str
    begin: Callable[[Cluster, admin_pb2.GetClusterResponse, random.Random], Mend | None]
    seconds: tuple[float, float]
    grave: bool
    needs_netem: bool = False

    def possible(self, cluster: Cluster) -> bool:
        return not self.needs_netem or cluster.nodes[0].can_be_disturbed()


def _nothing() -> None:
    pass


def _pids(state: admin_pb2.GetClusterResponse, dice: random.Random) -> list[int]:
    """Of one replica's ranks."""
    replicas = [[rank.pid for rank in entry.replica.ranks] for entry in state.replicas if entry.replica.ranks]
    return dice.choice(replicas) if replicas else []


def _kill_rank(cluster: Cluster, state: admin_pb2.GetClusterResponse, dice: random.Random) -> Mend | None:
    pids = _pids(state, dice)
    signal_all([dice.choice(pids)] if pids else [], signal.SIGKILL)
    return _nothing if pids else None


def _kill_replica(cluster: Cluster, state: admin_pb2.GetClusterResponse, dice: random.Random) -> Mend | None:
    pids = _pids(state, dice)
    signal_all(pids, signal.SIGKILL)
    return _nothing if pids else None


def _stop_rank(cluster: Cluster, state: admin_pb2.GetClusterResponse, dice: random.Random) -> Mend | None:
    pids = _pids(state, dice)
    if not pids:
        return None
    pid = dice.choice(pids)
    signal_all([pid], signal.SIGSTOP)
    return lambda: signal_all([pid], signal.SIGCONT)


def _kill_gateway(cluster: Cluster, state: admin_pb2.GetClusterResponse, dice: random.Random) -> Mend | None:
    running = [front for front in cluster.fronts if cluster.runs(front)]
    if not running:
        return None
    front = dice.choice(running)
    cluster.kill_gateway(front)
    return lambda: cluster.start_gateway(front)


def _kill_coordinator(cluster: Cluster, state: admin_pb2.GetClusterResponse, dice: random.Random) -> Mend | None:
    return _nothing if cluster.kill_coordinator() else None


def _kill_node(cluster: Cluster, state: admin_pb2.GetClusterResponse, dice: random.Random) -> Mend | None:
    node = dice.choice(cluster.nodes)
    if not cluster.kill_node(node):
        return None

    def again() -> None:
        cluster.bury_node(node)
        cluster.start_node(node)

    return again


def _cut_link(cluster: Cluster, state: admin_pb2.GetClusterResponse, dice: random.Random) -> Mend:
    machine = dice.choice([*cluster.nodes, *cluster.fronts])
    machine.unplug()
    return machine.plug_in


def _disturb_link(cluster: Cluster, state: admin_pb2.GetClusterResponse, dice: random.Random) -> Mend:
    machine = dice.choice([*cluster.nodes, *cluster.fronts])
    machine.disturb("delay 30ms 10ms loss 3%")
    return machine.calm


def _fill_memory(cluster: Cluster, state: admin_pb2.GetClusterResponse, dice: random.Random) -> Mend | None:
    """No room in shared memory, and a rank that dies: new epochs cannot be built there for a while."""
    node = dice.choice([node for node in cluster.nodes if cluster.runs(node)])
    ballast = cluster.memory(node) / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while file.write(b"\0" * (1 << 20)):
            pass
    killed = _kill_rank(cluster, state, dice)
    return None if killed is None else lambda: ballast.unlink(missing_ok=True)


FAULTS = (
    Fault("a rank is killed", _kill_rank, (0, 0), grave=True),
    Fault("a whole replica is killed", _kill_replica, (0, 0), grave=True),
    Fault("a rank stops for good", _stop_rank, (30, 30), grave=True),
    Fault("a rank is slow", _stop_rank, (0.2, 1.5), grave=False),
    Fault("a gateway is killed", _kill_gateway, (0.5, 2), grave=False),
    Fault("the coordinator is killed", _kill_coordinator, (1, 1), grave=False),
    Fault("a raylet is killed", _kill_node, (2, 5), grave=True),
    Fault("a link is cut for a moment", _cut_link, (0.2, 2), grave=False),
    Fault("a link is cut for long", _cut_link, (8, 12), grave=True),
    Fault("a link is slow and loses packets", _disturb_link, (2, 5), grave=False, needs_netem=True),
    Fault("shared memory is full and a rank killed", _fill_memory, (2, 4), grave=True),
)
