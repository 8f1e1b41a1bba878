"""One life of a replica: its ranks as Ray actors in a placement group, from the first one's start to the last's end.

The actors are detached from the coordinator, so that they outlive it and are adopted by the one that follows. They do
not outlive their placement group, which Ray removes with the job that serves (see `cluster.lifecycle.coordinator`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.lifecycle.blueprint import Blueprint
from cluster.lifecycle.lifeline import Address, Lifelines
from cluster.lifecycle.names import rank_name
from cluster.lifecycle.rank_actor import LIFELINE, LINK, RankActor
from cluster.topology import RayNode, ray_nodes
from phalanx.v1 import registry_pb2
from workers.request import EngineLoad
from workers.security.secret import derived

log = logging.getLogger(__name__)

_PLACE_S = 20.0  # the devices were free, or the last epoch's: who is not placed by then lost a race for them
_START_S = 300.0  # a process imports torch, perhaps from a slow disk
_CONNECT_S = 60.0
_LOAD_S = 3600.0
_FIRST_TOKEN_S = 600.0  # where the native engine has to be compiled
_ASK_S = 5.0
_STOP_S = 10.0
_LOOPBACK = "127.0.0.1"


class EpochError(RuntimeError):
    """An epoch that could not be built or taken over. The message names the rank and the cause."""


class NotPlacedError(EpochError):
    """Somebody else has the devices."""


class Epoch:
    """Epoch `number` of a replica. `name` is its own in the Ray cluster; `secret` is what its processes know of each
    other by; `detached` says whether its placement group outlives the job that serves."""

    def __init__(self, blueprint: Blueprint, replica: int, number: int, name: str, secret: str, detached: bool) -> None:
        self._blueprint, self._name, self._secret, self._detached = blueprint, name, secret, detached
        self._replica, self._number = replica, number
        self._ranks = len(blueprint.plan.ranks)
        self._group: PlacementGroup | None = None
        self._actors: list[Any] = []
        self._lifelines: Lifelines | None = None
        self.ranks: list[registry_pb2.RankInfo] = []
        self.address = ""  # of rank 0's link, as host:port

    @property
    def _own(self) -> dict[str, object]:
        """What lines in the log name it by."""
        return {"replica": self._replica, "epoch": self._number}

    @property
    def link_secret(self) -> str:
        """What gateways show to rank 0."""
        return derived(self._secret, LINK)

    async def build(self, placement: Sequence[RayNode], alone: bool, begin: Callable[[str], None]) -> int:
        """Brings the ranks up on the nodes in `placement`, the cluster's only one if `alone`; calls `begin` with what
        it does next. Returns how many bytes were read.

        Raises:
            NotPlacedError: the devices of `placement` are not to be had.
            EpochError: a rank could not be started, or died meanwhile.
        """
        begin(f"placing {self._ranks} ranks")
        await self._place(placement)
        self._actors = [self._start_actor(rank) for rank in range(self._ranks)]
        # On one machine nothing has to be reachable from outside.
        hosts = await self._find([node.name for node in placement], alone, "start", _START_S)
        begin("connecting the ranks")
        await self._take_lifelines(hosts)
        port = await self._first("connect", self._actors[0].open_store.remote(hosts[0]), _CONNECT_S)
        joins = [actor.join.remote(hosts[0], port, own) for actor, own in zip(self._actors, hosts, strict=True)]
        await self._all("connect", joins, _CONNECT_S)
        begin("loading the weights")
        read = sum(await self._all("load", [actor.load.remote() for actor in self._actors], _LOAD_S))
        begin("generating the first token")
        await self._all("follow", [actor.follow.remote() for actor in self._actors[1:]], _ASK_S, first=1)
        port = await self._first("serve", self._actors[0].serve.remote(hosts[0]), _FIRST_TOKEN_S)
        self.address = f"{hosts[0]}:{port}"
        return int(read)

    async def adopt(self, address: str, nodes: Sequence[str]) -> None:
        """Takes over ranks that were built before this process began, which serve at `address` on `nodes`.

        Raises:
            EpochError: not all of them are there.
        """
        try:
            self._group = get_placement_group(self._name)
            self._actors = [ray.get_actor(rank_name(self._name, rank)) for rank in range(self._ranks)]
        except ValueError as error:
            raise EpochError(f"not all ranks of {self._name} are there: {error}") from error
        loopback = address.startswith(f"{_LOOPBACK}:")
        await self._take_lifelines(await self._find(nodes, loopback, "answer", _ASK_S))
        self.address = address

    async def lost(self) -> str:
        """Returns, when a rank has ended or no step ends any more, what became of the ranks."""
        assert self._lifelines is not None
        return await self._lifelines.lost(self._blueprint.spec.collective_timeout_s)

    def vitals(self) -> list[registry_pb2.RankVitals]:
        """How the ranks are, of which nothing is known before they have been found."""
        return [] if self._lifelines is None else self._lifelines.vitals()

    @property
    def hung(self) -> bool:
        """Whether it was lost because no step ended."""
        return self._lifelines is not None and self._lifelines.hung

    async def metrics(self) -> list[str]:
        """What each rank tells of itself, for Prometheus; nothing of one that does not answer at once."""
        asked = [asyncio.wait_for(actor.metrics.remote(), _ASK_S) for actor in self._actors]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, str)]

    async def busy(self) -> EngineLoad:
        """What rank 0 is working on.

        Raises:
            EpochError: it does not say.
        """
        load: EngineLoad = await self._first("answer", self._actors[0].busy.remote(), _ASK_S)
        return load

    async def announce(self, registry: str) -> None:
        """Lets the ranks tell gateways where the registry is now."""
        await self._first("answer", self._actors[0].announce.remote(registry), _ASK_S)

    async def stop(self) -> None:
        """Lets a replica that serves end in order; what does not, is ended by `tear_down`."""
        assert self._lifelines is not None
        try:
            async with asyncio.timeout(_STOP_S):
                await self._actors[0].stop.remote()
                await self._lifelines.all_ended()
        except (TimeoutError, RayTaskError, RayActorError) as error:
            log.warning("ranks had to be killed", extra={**self._own, "error": reason(error)})

    def tear_down(self) -> None:
        """Ends every process and gives the devices back."""
        if self._lifelines is not None:
            self._lifelines.close()
            self._lifelines = None
        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)
        self._actors, self._group, self.address = [], None, ""

    async def _place(self, placement: Sequence[RayNode]) -> None:
        self._group = placement_group(
            [self._resources(rank) for rank in range(self._ranks)],
            name=self._name,
            lifetime="detached" if self._detached else None,
            bundle_label_selector=[{"ray.io/node-id": node.node_id} for node in placement],
        )
        placed = asyncio.ensure_future(self._group.ready())
        deadline = monotonic() + _PLACE_S
        while not placed.done() and monotonic() < deadline:
            await asyncio.wait([placed], timeout=1.0)
            # A dead node still counts as alive until Ray has missed its heartbeats.
            gone = {node.name for node in placement} - {node.name for node in await asyncio.to_thread(ray_nodes)}
            if gone and not placed.done():
                placed.cancel()
                raise EpochError(f"{', '.join(sorted(gone))} left the cluster before the ranks were placed")
        if not placed.done():
            placed.cancel()
            wanted = ", ".join(f"{node.name}: {self._resources(rank)}" for rank, node in enumerate(placement))
            raise NotPlacedError(
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
        assert self._group is not None
        return (
            ray.remote(RankActor)
            .options(
                name=rank_name(self._name, rank),
                lifetime="detached",
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                max_concurrency=4,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, rank),
            )
            .remote(
                self._blueprint.plan_json,
                self._blueprint.engine_json,
                rank,
                self._secret,
                self._blueprint.spec.internal_tls,
                self._blueprint.spec.log,
                self._replica,
                self._number,
                self._blueprint.spec.traces,
            )
        )

    async def _find(self, nodes: Sequence[str], loopback: bool, what: str, deadline_s: float) -> list[str]:
        """Notes where the ranks are, which are on `nodes`; returns the address of each."""
        places = await self._all(what, [actor.where.remote() for actor in self._actors], deadline_s)
        self.ranks = [
            registry_pb2.RankInfo(rank=plan.rank, node=node, pid=pid, device=plan.device)
            for plan, node, (_, pid) in zip(self._blueprint.plan.ranks, nodes, places, strict=True)
        ]
        return [_LOOPBACK if loopback else address for address, _ in places]

    async def _take_lifelines(self, hosts: Sequence[str]) -> None:
        calls = [actor.lifeline.remote(host) for actor, host in zip(self._actors, hosts, strict=True)]
        ports = await self._all("answer", calls, _CONNECT_S)
        addresses = [Address(host, port) for host, port in zip(hosts, ports, strict=True)]
        self._lifelines = Lifelines(addresses, derived(self._secret, LIFELINE), [rank.node for rank in self.ranks])

    async def _first(self, what: str, call: Awaitable[Any], deadline_s: float) -> Any:
        """The result of a call to rank 0."""
        return (await self._all(what, [call], deadline_s))[0]

    async def _all(self, what: str, calls: Sequence[Awaitable[Any]], deadline_s: float, first: int = 0) -> list[Any]:
        """The results of one call to every rank from `first` on, unless one fails, or a rank dies: then the others may
        wait for it in vain."""
        answers = [asyncio.ensure_future(self._answer(rank, call, what)) for rank, call in enumerate(calls, first)]
        together = asyncio.gather(*answers)
        died = None if self._lifelines is None else asyncio.ensure_future(self._lifelines.lost(deadline_s))
        waits: list[asyncio.Future[Any]] = [together] if died is None else [together, died]
        try:
            await asyncio.wait(waits, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if together.done():
                return await together
            late = next(rank for rank, answer in enumerate(answers, first) if not answer.done())
            if died is not None and died.done():
                raise EpochError(f"while rank {late} should {what}: {died.result()}")
            raise EpochError(f"{self._name_of(late)} did not {what} within {deadline_s:g} s")
        finally:
            for wait in waits:
                wait.cancel()

    async def _answer(self, rank: int, call: Awaitable[Any], what: str) -> Any:
        try:
            return await call
        except (RayTaskError, RayActorError) as error:
            raise EpochError(f"{self._name_of(rank)} failed to {what}: {reason(error)}") from error

    def _name_of(self, rank: int) -> str:
        return f"rank {rank} on {self.ranks[rank].node if rank < len(self.ranks) else 'its node'}"


def reason(error: BaseException) -> str:
    """One line: what went wrong in an actor, without the traceback that Ray wraps around it."""
    if isinstance(error, RayTaskError):
        error = error.cause
        return f"{type(error).__name__}: {error}"
    if isinstance(error, RayActorError):
        return "its process died"
    return str(error) or type(error).__name__
