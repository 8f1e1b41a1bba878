"""The life of one replica: place, rendezvous, load, ready, lost, and again.

A replica is one failure unit. When a rank dies or a collective stalls, every rank of the epoch goes, and a new epoch is
built: on the same nodes if they live, on others if need be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.rank_actor import RankActor
from cluster.topology import RayNode, ray_nodes, topology_of
from partitioning.placement import place_ranks
from partitioning.plan import Plan
from phalanx.v1 import registry_pb2

log = logging.getLogger(__name__)

_PLACE_S = 60.0  # free devices were counted before, so a group that is not placed by then lost a race for them
_STOP_S = 10.0
_BLAME_S = 0.5  # how long after the first rank's end others may show that they ended before
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # before another attempt, longer after every one that failed
_LOOPBACK = "127.0.0.1"


class ReplicaError(RuntimeError):
    """An epoch that could not be built. The message names the rank and the cause."""


@dataclass(frozen=True)
class Blueprint:
    """What all replicas of a deployment are built from; the plan and the engine's configuration also as JSON."""

    deployment: str
    plan: Plan
    plan_json: str
    engine_json: str


class ReplicaLife:
    """Replica `number` of a deployment. `publish` is called after every change of `state`."""

    def __init__(self, number: int, blueprint: Blueprint, publish: Callable[[], None]) -> None:
        self._blueprint = blueprint
        self._publish = publish
        self._placement = [node for node, _ in blueprint.plan.replica_devices[number]]
        self._group: PlacementGroup | None = None
        self._actors: list[Any] = []
        self._runs: list[asyncio.Task[None]] = []  # one for each rank; the first that ends, ends the epoch
        self._before = ""  # what became of the last epoch; followers of the state may miss its own message
        self.state = registry_pb2.Replica(id=number)
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def live(self) -> None:
        """Builds epoch after epoch. `first` tells how the first one went."""
        failures = 0
        while True:
            self.state.epoch += 1
            try:
                await self._build()
                failures = 0
                if not self.first.done():
                    self.first.set_result(None)
                detail = await self._lost()
            except Exception as error:
                failures += 1
                detail = _reason(error)
                if not self.first.done():
                    self.first.set_exception(ReplicaError(f"replica {self.state.id} could not be built: {detail}"))
            self._become(registry_pb2.REPLICA_STATE_FAILED, detail)
            self._before = f"; epoch {self.state.epoch} ended: {detail}"
            self._tear_down()
            if failures:
                await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S)) - 1])

    async def stop(self) -> None:
        """Lets the ranks end in order, and those that do not, at once."""
        if self.state.state == registry_pb2.REPLICA_STATE_READY:
            try:
                async with asyncio.timeout(_STOP_S):
                    await self._actors[0].stop.remote()
                    await asyncio.gather(*self._runs)
            except (TimeoutError, ReplicaError, RayTaskError, RayActorError) as error:
                log.warning("replica %d had to be killed: %s", self.state.id, _reason(error))
        self._tear_down()

    async def _build(self) -> None:
        started = monotonic()
        plan = self._blueprint.plan
        del self.state.ranks[:]
        nodes = {node.name: node for node in ray_nodes()}
        placement = self._nodes_for_ranks(nodes)
        self._become(registry_pb2.REPLICA_STATE_STARTING, f"placing {len(plan.ranks)} ranks{self._before}")
        await self._place(placement)
        self._actors = [self._start_actor(rank) for rank in range(len(plan.ranks))]
        places = await self._all("start", [actor.where.remote() for actor in self._actors])
        self.state.ranks.extend(
            registry_pb2.RankInfo(rank=rank, node=node.name, pid=pid)
            for rank, (node, (_, pid)) in enumerate(zip(placement, places, strict=True))
        )
        # On one machine nothing has to be reachable from outside.
        addresses = [_LOOPBACK if len(nodes) == 1 else address for address, _ in places]
        self._become(registry_pb2.REPLICA_STATE_STARTING, "connecting the ranks")
        host = addresses[0]
        port = await self._one(0, self._actors[0].open_store.remote(host))
        key = f"{self._blueprint.deployment}-{self.state.id}-{self.state.epoch}"
        joins = [actor.join.remote(host, port, key, own) for actor, own in zip(self._actors, addresses, strict=True)]
        await self._all("connect", joins)
        self._become(registry_pb2.REPLICA_STATE_STARTING, "loading the weights")
        read = sum(await self._all("load", [actor.load.remote() for actor in self._actors]))
        self._become(registry_pb2.REPLICA_STATE_STARTING, "generating the first token")
        self._runs = [self._run(rank) for rank in range(1, len(plan.ranks))]
        port = await self._serving(host)
        self._runs.append(self._run(0))
        self.state.address = f"{host}:{port}"
        detail = f"ready after {monotonic() - started:.1f} s, {read / 1e6:,.0f} MB read"
        self._become(registry_pb2.REPLICA_STATE_READY, detail)

    def _nodes_for_ranks(self, nodes: dict[str, RayNode]) -> list[RayNode]:
        """The node of each rank: as planned if these live, otherwise wherever there is room now."""
        if not nodes.keys() >= set(self._placement):
            plan = self._blueprint.plan
            kind = "cuda" if plan.ranks[0].device.startswith("cuda") else "cpu"
            topology = topology_of(list(nodes.values()), kind, plan.tp, len(plan.ranks))  # type: ignore[arg-type]
            self._placement = [place.node for place in place_ranks(topology, plan.tp, plan.pp, 1)[0]]
        return [nodes[name] for name in self._placement]

    async def _place(self, placement: Sequence[RayNode]) -> None:
        self._group = placement_group(
            [self._resources(rank) for rank in range(len(placement))],
            name=f"{self._blueprint.deployment}-{self.state.id}-{self.state.epoch}",
            bundle_label_selector=[{"ray.io/node-id": node.node_id} for node in placement],
        )
        placed = asyncio.ensure_future(self._group.ready())
        deadline = monotonic() + _PLACE_S
        while not placed.done() and monotonic() < deadline:
            await asyncio.wait([placed], timeout=1.0)
            # A dead node still counts as alive until Ray has missed its heartbeats.
            gone = {node.name for node in placement} - {node.name for node in ray_nodes()}
            if gone and not placed.done():
                placed.cancel()
                raise ReplicaError(f"{', '.join(sorted(gone))} left the cluster before the ranks were placed")
        if not placed.done():
            placed.cancel()
            wanted = ", ".join(f"{node.name}: {self._resources(rank)}" for rank, node in enumerate(placement))
            raise ReplicaError(
                f"the cluster did not give its ranks a place within {_PLACE_S:.0f} s (wanted {wanted}): another job "
                "was quicker; see `ray status`"
            )
        await placed

    def _resources(self, rank: int) -> dict[str, float]:
        mine = self._blueprint.plan.ranks[rank]
        gpu = {"GPU": 1.0} if mine.device.startswith("cuda") else {}
        return {"CPU": float(mine.threads), **gpu}

    def _start_actor(self, rank: int) -> Any:
        resources = self._resources(rank)
        blueprint = self._blueprint
        assert self._group is not None
        return (
            ray.remote(RankActor)
            .options(
                name=f"{blueprint.deployment}-{self.state.id}-{self.state.epoch}-rank-{rank}",
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                max_concurrency=2,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, rank),
            )
            .remote(blueprint.plan_json, blueprint.engine_json, rank)
        )

    def _run(self, rank: int) -> asyncio.Task[None]:
        return asyncio.ensure_future(self._one(rank, self._actors[rank].run.remote()))

    async def _serving(self, host: str) -> int:
        """Rank 0's port, unless one of the others ends first: then rank 0 would wait for it in vain."""
        serving = asyncio.ensure_future(self._one(0, self._actors[0].serve.remote(host)))
        await asyncio.wait([serving, *self._runs], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            serving.cancel()
            raise ReplicaError(await self._lost())
        return int(await serving)

    async def _lost(self) -> str:
        """Returns, when the first rank has ended, what became of it."""
        await asyncio.wait(self._runs, return_when=asyncio.FIRST_COMPLETED)
        # Ranks that only miss the dead one may be heard first.
        done, _ = await asyncio.wait(self._runs, timeout=_BLAME_S)
        failures = [error for task in done if (error := task.exception()) is not None]
        failures.sort(key=lambda error: not isinstance(error.__cause__, RayActorError))
        return str(failures[0]) if failures else "a rank ended"

    async def _all(self, what: str, calls: Sequence[Awaitable[Any]]) -> list[Any]:
        """The results of one call to every rank; the first failure ends the wait, as the others may hang on it."""
        return list(await asyncio.gather(*(self._one(rank, call, what) for rank, call in enumerate(calls))))

    async def _one(self, rank: int, call: Awaitable[Any], what: str = "run") -> Any:
        try:
            return await call
        except (RayTaskError, RayActorError) as error:
            node = self.state.ranks[rank].node if rank < len(self.state.ranks) else "its node"
            raise ReplicaError(f"rank {rank} on {node} failed to {what}: {_reason(error)}") from error

    def _become(self, state: registry_pb2.ReplicaState, detail: str) -> None:
        self.state.state, self.state.detail = state, detail
        if state != registry_pb2.REPLICA_STATE_READY:
            self.state.address = ""
        self._publish()

    def _tear_down(self) -> None:
        for run in self._runs:
            run.cancel()
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._runs = [], []
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


def _reason(error: BaseException) -> str:
    """One line: what went wrong in the actor, without the traceback that Ray wraps around it."""
    if isinstance(error, RayTaskError):
        error = error.cause
        return f"{type(error).__name__}: {error}"
    if isinstance(error, RayActorError):
        return "its process died"
    return str(error) or type(error).__name__
