"""All replicas of a deployment: how many there are, and from what they are built; both can change while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic

from cluster.lifecycle.blueprint import Blueprint, draw, place
from cluster.lifecycle.record import DeploymentRecord
from cluster.lifecycle.registry import Registry
from cluster.lifecycle.replica import ReplicaLife
from cluster.metrics.coordinator import ReplicaLook
from cluster.spec import DeploymentSpec
from cluster.topology import ray_nodes
from partitioning.plan import PlanError
from phalanx.v1 import registry_pb2

_ROOM_S = 2.0


class RollError(ValueError):
    """A spec that cannot take over the streams of the one before. The message says why, and what to do instead."""


class ReplicaSet:
    """Writes every change to `record`, and tells `registry`. `blueprint` is what replicas are built from; there is one
    from `begin` or `take_over` on."""

    blueprint: Blueprint

    def __init__(self, record: DeploymentRecord, registry: Registry) -> None:
        self._record, self._registry = record, registry
        self._replicas: dict[int, ReplicaLife] = {}
        self._changing = asyncio.Lock()

    def begin(self, blueprint: Blueprint) -> None:
        """Begins to build the replicas that a new deployment's plan has."""
        self._adopt_blueprint(blueprint, blueprint.plan.replicas)
        for devices in blueprint.plan.replica_devices:
            self._begin(blueprint, [node for node, _ in devices])

    def take_over(self) -> None:
        """Goes on with what the record says that there is."""
        self.blueprint = blueprint = Blueprint.from_json(self._record.blueprint)
        self._registry.set_model(blueprint.plan_json, blueprint.engine_json)
        for number, left in sorted(self._record.replicas.items()):
            own = Blueprint.from_json(left.blueprint)
            planned = blueprint if own.generation == blueprint.generation else own
            self._replicas[number] = ReplicaLife(number, planned, self._record, self._publish)
            self._replicas[number].begin(left)
        for _ in range(len(self._replicas), self._record.wanted):
            self._begin(blueprint)

    async def started(self) -> None:
        """Returns when every replica has been ready once.

        Raises:
            ReplicaError: one could not be built.
        """
        await asyncio.gather(*(asyncio.shield(replica.first) for replica in self._replicas.values()))

    async def look(self) -> list[ReplicaLook]:
        """What all of them are and do now, for Prometheus."""
        return await asyncio.gather(*(replica.look() for _, replica in sorted(self._replicas.items())))

    def serves(self, spec: DeploymentSpec) -> bool:
        """Whether all replicas are built from `spec`."""
        current = self.blueprint
        built = {replica.blueprint.generation for replica in self._replicas.values()}
        return current.spec == spec and built == {current.generation}

    def vitals(self) -> list[registry_pb2.RankVitals]:
        """How the ranks of all replicas are."""
        return [vitals for replica in self._replicas.values() for vitals in replica.vitals()]

    async def scale(self, replicas: int) -> None:
        """Starts or retires replicas until there are so many.

        Raises:
            PlanError: there is no room for so many.
            ReplicaError: a new one could not be built; it is given up.
        """
        async with self._changing:
            self._registry.note(registry_pb2.EVENT_KIND_SCALE, f"from {len(self._replicas)} to {replicas} replicas")
            for _ in range(len(self._replicas), replicas):
                await self._add(self.blueprint)
            surplus = sorted(self._replicas)[replicas:]
            await asyncio.gather(*(self._retire(number) for number in surplus))
            self._record.wanted = replicas
            self._record.write()

    async def roll(self, spec: DeploymentSpec) -> None:
        """Replaces the replicas, one after the other, by those of another spec, and their number by the spec's.

        Where the cluster has room for one more, each is built before the one it replaces drains; otherwise after it.

        Raises:
            RollError: the spec cannot take over the streams of the one before.
            PlanError, ReplicaError: a new replica could not be built. Those not replaced yet go on.
        """
        async with self._changing:
            before = self.blueprint
            nodes = await asyncio.to_thread(ray_nodes)
            for replica in self._replicas.values():
                nodes = replica.left(nodes)
            blueprint = await asyncio.to_thread(draw, spec, before.generation + 1, nodes)
            _check_successor(before, blueprint)
            self._registry.note(registry_pb2.EVENT_KIND_ROLL, f"to {spec.model}, generation {blueprint.generation}")
            old = sorted(self._replicas)
            for _ in range(blueprint.plan.replicas):
                while old and not await _has_room(blueprint):
                    await self._retire(old.pop(0))
                try:
                    await self._add(blueprint)
                except BaseException:
                    if not self._replicas:
                        self._begin(before)
                    raise
                if old:
                    await self._retire(old.pop(0))
            await asyncio.gather(*(self._retire(number) for number in old))
            self._adopt_blueprint(blueprint, len(self._replicas))

    async def keep_to_plan(self) -> None:
        """Brings replicas that had to be cut anew back to their plan, where it has room again."""
        if self._changing.locked() or not any(replica.recut for replica in self._replicas.values()):
            return
        async with self._changing:
            for replica in self._replicas.values():
                nodes = await asyncio.to_thread(ray_nodes)
                await replica.return_to_plan(nodes, self.blueprint.spec.drain_s)

    async def stop(self) -> None:
        """Ends all replicas."""
        await asyncio.gather(*(replica.stop() for replica in self._replicas.values()))

    def _adopt_blueprint(self, blueprint: Blueprint, wanted: int) -> None:
        self.blueprint = blueprint
        self._record.blueprint, self._record.wanted = blueprint.to_json(), wanted
        self._record.write()
        self._registry.set_model(blueprint.plan_json, blueprint.engine_json)

    def _begin(self, blueprint: Blueprint, placement: Sequence[str] = ()) -> int:
        number = self._record.made
        self._record.made += 1
        self._replicas[number] = ReplicaLife(number, blueprint, self._record, self._publish, placement)
        self._replicas[number].begin()
        return number

    async def _add(self, blueprint: Blueprint) -> None:
        """One more replica, if there is room, ready when this returns."""
        await _has_room(blueprint, or_raise=True)
        number = self._begin(blueprint)
        try:
            await asyncio.shield(self._replicas[number].first)
        except BaseException:
            await self._replicas.pop(number).stop()
            self._publish()
            raise

    async def _retire(self, number: int) -> None:
        await self._replicas[number].retire(self.blueprint.spec.drain_s)
        del self._replicas[number]
        self._publish()

    def _publish(self) -> None:
        secrets = {number: replica.link_secret for number, replica in self._replicas.items()}
        self._registry.set_replicas([replica.state for _, replica in sorted(self._replicas.items())], secrets)


async def _has_room(blueprint: Blueprint, or_raise: bool = False) -> bool:
    """Whether there is room for one more replica; what was given back is free a moment later.

    Raises:
        PlanError: there is none, and that was asked for.
    """
    deadline = monotonic() + _ROOM_S
    while True:
        try:
            await asyncio.to_thread(lambda: place(blueprint, ray_nodes()))
            return True
        except PlanError:
            if monotonic() > deadline:
                if or_raise:
                    raise
                return False
        await asyncio.sleep(_ROOM_S / 10)


def _check_successor(before: Blueprint, after: Blueprint) -> None:
    old, new = before.plan.model, after.plan.model
    if before.spec.name != after.spec.name:
        raise RollError(f"the deployment is named {before.spec.name}, and the new spec {after.spec.name}")
    if before.spec.internal_tls != after.spec.internal_tls:
        raise RollError(
            "internal_tls cannot be changed while the deployment runs, as its processes speak to each other by it: "
            "stop it and serve it anew (renewed files at the same paths are read without that)"
        )
    if old.vocab_size != new.vocab_size or old.eos_token_ids != new.eos_token_ids:
        raise RollError(
            f"{after.spec.model} has another vocabulary than {before.spec.model}, so streams cannot go on with it: "
            "serve it under another name, and let clients move"
        )
