"""The coordinator: a named Ray actor that plans the deployment and keeps its replicas alive.

Ray restarts it when it dies. Replicas go on meanwhile, and the one that comes back takes them over: what it has to know
is in a `DeploymentRecord`. Unless the deployment is detached, coordinator and placement groups belong to the job that
serves: when that ends, in whatever way, Ray removes both, and the ranks with the groups.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

import ray

from cluster.lifecycle.blueprint import Blueprint, draw
from cluster.lifecycle.record import DeploymentRecord
from cluster.lifecycle.registry import Registry
from cluster.lifecycle.replica_set import ReplicaSet
from cluster.metrics.coordinator import CoordinatorMetrics, ReplicaLook
from cluster.metrics.endpoint import MetricsEndpoint, MetricsError
from cluster.metrics.in_ray import InRay
from cluster.spec import DeploymentSpec
from cluster.topology import ray_nodes
from partitioning.plan import PlanError
from phalanx.v1 import registry_pb2
from workers.observation.log import set_up
from workers.security.secret import new_secret

log = logging.getLogger(__name__)

_LOOK_S = 10.0  # how often it is looked whether a replica in another cut can return to the planned one
_DEVICES_S = 2.0  # between looks for devices that are waited for


@dataclass(frozen=True)
class Opened:
    """Where the registry is, as host:port, what it lets gateways in by, the plan, and where metrics are shown, if they
    are."""

    registry: str
    secret: str = field(repr=False)
    plan_json: str
    metrics: str


class Coordinator:
    """The actor. `open` it, wait for it to have `started`, `close` it.

    `life` tells deployments apart that had the same name one after the other. `secrets` are those that the registry
    lets gateways in by; without any, it makes one up.
    """

    def __init__(self, spec_json: str, life: str, detached: bool, secrets: list[str]) -> None:
        self._spec = DeploymentSpec.model_validate_json(spec_json)
        set_up(self._spec.log, "coordinator", deployment=self._spec.name)
        self._record = DeploymentRecord(self._spec.name, life, detached, secrets or [new_secret()])
        self._registry = Registry(
            self._spec.name, lambda: self._record.secrets, self.scale, self._spec.internal_tls, self._vitals
        )
        self._metrics = ""  # where they are shown, as host:port
        self._own_metrics = CoordinatorMetrics(self._look)
        self._endpoint = MetricsEndpoint(self._own_metrics.registry)
        self._in_ray: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[Opened] | None = None
        self._replicas: ReplicaSet | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        # Nobody else asks for it when Ray has restarted this actor.
        ray.get_runtime_context().current_actor.open.remote()

    async def open(self) -> Opened:
        """Plans, and begins to build the replicas; where an earlier life of this actor did, takes those over.

        Raises:
            PlanError: it does not fit the cluster; the message says what is missing.
            CheckpointError: the model cannot be read on this node.
        """
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def started(self) -> None:
        """Returns when every replica has been ready once.

        Raises:
            ReplicaError: one could not be built.
        """
        await (await self._opened()).started()

    async def serves(self, spec_json: str) -> bool:
        """Whether the replicas are built from this spec."""
        return (await self._opened()).serves(DeploymentSpec.model_validate_json(spec_json))

    async def let_in(self, secrets: list[str]) -> None:
        """From now on the registry lets in who shows one of these, and nobody else who comes."""
        await self._opened()
        self._record.secrets = secrets
        await asyncio.to_thread(self._record.write)

    async def scale(self, replicas: int) -> int:
        """Starts or retires replicas until there are so many; returns their number.

        Raises:
            PlanError: there is no room for so many.
            ReplicaError: a new one could not be built; it is given up.
        """
        await (await self._opened()).scale(replicas)
        log.info("scaled", extra={"replicas": replicas})
        return replicas

    async def roll(self, spec_json: str) -> None:
        """Replaces the replicas, one after the other, by those of another spec, and their number by the spec's.

        Raises:
            RollError: the spec cannot take over the streams of the one before.
            PlanError, ReplicaError: a new replica could not be built. Those not replaced yet go on.
        """
        await (await self._opened()).roll(DeploymentSpec.model_validate_json(spec_json))
        log.info("rolled")

    async def close(self) -> None:
        """Ends the replicas, and leaves no actor or placement group behind."""
        for task in (self._keeper, self._in_ray):
            if task is not None:
                task.cancel()
        if self._replicas is not None:
            await self._replicas.stop()
        await self._registry.stop()
        await self._endpoint.stop()
        await asyncio.to_thread(self._record.erase)
        log.info("closed")
        self._closed.set()

    async def until_closed(self) -> None:
        """Returns after `close`; a caller notices by it when this actor dies for good."""
        await self._closed.wait()

    def _vitals(self) -> list[registry_pb2.RankVitals]:
        return [] if self._replicas is None else self._replicas.vitals()

    async def _opened(self) -> ReplicaSet:
        await self.open()
        assert self._replicas is not None
        return self._replicas

    async def _open(self) -> Opened:
        left = await asyncio.to_thread(DeploymentRecord.read, self._spec.name)
        if taken_over := left is not None and left.life == self._record.life:
            self._record = left
            try:
                await self._show_metrics()
            except MetricsError as error:
                log.warning("%s", error)  # replicas matter more
            # On another node its old address cannot be had, but the spec's can be.
            await self._listen(self._spec.registry_listen, left.registry)
            self._replicas = ReplicaSet(left, self._registry)
            self._replicas.take_over()
        else:
            await self._show_metrics()
            blueprint = await self._planned()
            await self._listen(self._spec.registry_listen)
            self._replicas = ReplicaSet(self._record, self._registry)
            self._replicas.begin(blueprint)
        self._keeper = asyncio.create_task(self._keep(self._replicas))
        if self._spec.ray_metrics:
            self._in_ray = asyncio.create_task(InRay(self._own_metrics).keep())
        log.info("coordinating", extra={"registry": self._record.registry, "taken_over": taken_over})
        return Opened(self._record.registry, self._record.secrets[0], self._replicas.blueprint.plan_json, self._metrics)

    async def _planned(self) -> Blueprint:
        """The blueprint, as soon as the cluster has the devices; the spec says how long that may take."""
        deadline = monotonic() + self._spec.wait_for_devices
        while True:
            try:
                return await asyncio.to_thread(lambda: draw(self._spec, 1, ray_nodes()))
            except PlanError as error:
                if monotonic() + _DEVICES_S > deadline:
                    raise
                log.warning("waiting for devices", extra={"left_s": round(deadline - monotonic()), "error": str(error)})
                await asyncio.sleep(_DEVICES_S)

    async def _listen(self, *wishes: str | None) -> None:
        """Opens the registry, at the first of the wished addresses that can be had: gateways look there first."""
        nodes = await asyncio.to_thread(ray_nodes)
        node = ray.util.get_node_ip_address()
        own = "127.0.0.1" if len(nodes) == 1 else node
        for address in filter(None, (*wishes, f"{own}:0")):
            named, _, port = address.rpartition(":")
            host = named or node
            try:
                bound = await self._registry.start(host, int(port))
            except RuntimeError as error:
                log.warning("the registry cannot listen", extra={"address": f"{host}:{port}", "error": str(error)})
            else:
                self._record.registry = f"{host}:{bound}"
                return
        raise RuntimeError(f"the registry cannot listen on {own}")

    async def _show_metrics(self) -> None:
        """Raises MetricsError: not at the address that the spec states."""
        if (address := self._spec.coordinator_metrics_address) is None:
            return
        named, _, port = address.rpartition(":")
        host = named or ray.util.get_node_ip_address()
        try:
            self._metrics = f"{host}:{await self._endpoint.start(f'{host}:{port}')}"
        except MetricsError as error:
            raise MetricsError(f"{error}; choose another coordinator_metrics_address") from error

    async def _look(self) -> Sequence[ReplicaLook]:
        return [] if self._replicas is None else await self._replicas.look()

    async def _keep(self, replicas: ReplicaSet) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await replicas.keep_to_plan()
