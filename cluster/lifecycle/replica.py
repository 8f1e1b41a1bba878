"""The life of one replica: built, ready, lost, and again.

A replica is one failure unit. When a rank dies or a step hangs, every rank of the epoch goes, and a new epoch is built:
on the same nodes if they live, on others if need be, and in another cut when the planned one has no room any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from time import monotonic

from cluster.lifecycle.blueprint import Blueprint, place, redraw
from cluster.lifecycle.epoch import Epoch, EpochError, NotPlacedError, reason
from cluster.lifecycle.names import epoch_name
from cluster.lifecycle.record import DeploymentRecord, ReplicaRecord
from cluster.metrics.coordinator import ReplicaLook
from cluster.topology import RayNode, ray_nodes
from partitioning.plan import PlanError
from phalanx.v1 import registry_pb2

log = logging.getLogger(__name__)

_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # before another attempt, longer after every one that failed
_SHORT_LIFE_S = 60.0  # an epoch that ends sooner after it was ready counts as a failure: it may do so again
_LOOK_S = 0.2  # how often a draining replica is asked whether it has finished


class ReplicaError(RuntimeError):
    """A replica that could not be built. The message names the rank and the cause."""


class ReplicaLife:
    """Replica `number` of a deployment, of which `record` keeps what a later coordinator has to know. `publish` is
    called after every change of `state`. `placement` names the ranks' nodes, if these are chosen already."""

    def __init__(
        self,
        number: int,
        blueprint: Blueprint,
        record: DeploymentRecord,
        publish: Callable[[], None],
        placement: Sequence[str] = (),
    ) -> None:
        self._planned = self._blueprint = blueprint
        self._record, self._publish = record, publish
        self._placement = list(placement)
        self._epoch: Epoch | None = None
        self._before = ""  # what became of the last epoch; followers of the state may miss its own message
        self._life: asyncio.Task[None] | None = None
        self._failures: Counter[str] = Counter()
        self.state = registry_pb2.Replica(id=number, generation=blueprint.generation)
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def blueprint(self) -> Blueprint:
        return self._planned

    @property
    def link_secret(self) -> str:
        """What gateways show to its rank 0."""
        return "" if self._epoch is None else self._epoch.link_secret

    def vitals(self) -> list[registry_pb2.RankVitals]:
        """How its ranks are, as far as it hears from them."""
        heard = [] if self._epoch is None else self._epoch.vitals()
        for rank in heard:
            rank.replica, rank.epoch = self.state.id, self.state.epoch
        return heard

    @property
    def recut(self) -> bool:
        """Whether it runs in another cut than the planned one."""
        return self._blueprint is not self._planned

    async def look(self) -> ReplicaLook:
        """What it is and does now, for Prometheus."""
        ranks = [] if self._epoch is None else await self._epoch.metrics()
        state = registry_pb2.Replica()
        state.CopyFrom(self.state)
        return ReplicaLook(state, dict(self._failures), ranks)

    def begin(self, left: ReplicaRecord | None = None) -> None:
        """Lives from now on, with the epoch that an earlier coordinator `left`, if there is one. `first` tells when it
        has become ready, or why it could not."""
        self._life = asyncio.create_task(self._live(left))

    async def retire(self, drain_s: float) -> None:
        """Takes no more sequences, lets those it has finish for up to `drain_s` seconds, and ends. Streams that are not
        finished by then go on at another replica."""
        await self._drain(drain_s)
        await self.stop()

    async def stop(self) -> None:
        """Lets the ranks end in order, and those that do not, at once."""
        await self._end()
        self._log(logging.INFO, "replica stopped")
        self._record.forget(self.state.id)

    async def return_to_plan(self, nodes: list[RayNode], drain_s: float) -> None:
        """Where it runs in another cut than the planned one, and that fits `nodes` again: drains, and builds it so."""
        if self.recut and self.state.state == registry_pb2.REPLICA_STATE_READY and self._would_fit(nodes):
            await self._drain(drain_s)
            await self._end()
            self._log(logging.INFO, "epoch ended", reason="the planned cut has room again")
            self._before = f"; epoch {self.state.epoch} ended: the planned cut has room again"
            self.begin()

    def left(self, nodes: list[RayNode]) -> list[RayNode]:
        """`nodes` as they will be when this replica has left them."""
        ranks = self._blueprint.plan.ranks
        cpus: Counter[str] = Counter()
        gpus: Counter[str] = Counter()
        if self._epoch is not None and self._epoch.address:
            for rank, node in zip(ranks, self._placement, strict=True):
                cpus[node] += rank.threads
                gpus[node] += rank.device.startswith("cuda")
        return [replace(n, cpus=n.cpus + cpus[n.name], gpus=n.gpus + gpus[n.name]) for n in nodes]

    async def _drain(self, drain_s: float) -> None:
        if self.state.state != registry_pb2.REPLICA_STATE_READY:
            return
        self._log(logging.INFO, "replica draining", drain_s=drain_s)
        self._become(registry_pb2.REPLICA_STATE_DRAINING, f"draining for up to {drain_s:g} s")
        deadline = monotonic() + drain_s
        with suppress(EpochError):
            # An epoch that is lost meanwhile has nothing left to finish.
            while self.state.state == registry_pb2.REPLICA_STATE_DRAINING and monotonic() < deadline:
                assert self._epoch is not None
                load = await self._epoch.busy()
                if not load.running + load.waiting:
                    break
                await asyncio.sleep(_LOOK_S)

    async def _end(self) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
        if self._epoch is not None and self._epoch.address:
            await self._epoch.stop()
        self._tear_down()

    def _tear_down(self) -> None:
        if self._epoch is not None:
            self._epoch.tear_down()
            self._epoch = None

    async def _live(self, left: ReplicaRecord | None) -> None:
        failures = 0
        while True:
            since = monotonic()
            try:
                if left is not None:
                    await self._adopt(left)
                else:
                    await self._build()
                since = monotonic()
                if not self.first.done():
                    self.first.set_result(None)
                assert self._epoch is not None
                detail = await self._epoch.lost()
                self._failures["hung" if self._epoch.hung else "rank_lost"] += 1
                failures = 0 if monotonic() - since > _SHORT_LIFE_S else failures + 1
            except Exception as error:  # whatever it is, the replica has to live again
                failures += 1
                detail = reason(error)
                if isinstance(error, NotPlacedError):
                    self._placement = []
                unbuilt = "no_room" if isinstance(error, PlanError) else "not_built"
                self._failures[unbuilt if left is None else "not_adopted"] += 1
                if not self.first.done() and left is None:
                    self.first.set_exception(ReplicaError(f"replica {self.state.id} could not be built: {detail}"))
            left = None
            self._before = f"; epoch {self.state.epoch} ended: {detail}"
            pause = _PAUSES_S[min(failures, len(_PAUSES_S)) - 1] if failures > 1 else 0.0
            again = f"; trying again in {pause:g} s, after {failures} failures" if pause else ""
            self._log(logging.WARNING, "epoch ended", error=detail, failures=failures, retry_s=pause)
            self._become(registry_pb2.REPLICA_STATE_FAILED, detail + again)
            self._tear_down()
            await asyncio.sleep(pause)

    async def _adopt(self, left: ReplicaRecord) -> None:
        self.state.epoch = left.epoch
        own = Blueprint.from_json(left.blueprint)
        self._blueprint = self._planned if _cut(own) == _cut(self._planned) else own
        self._placement = list(left.nodes)
        self._epoch = self._new_epoch(left.secret)
        await self._epoch.adopt(left.address, left.nodes)
        await self._epoch.announce(self._record.registry)
        self._log(logging.INFO, "epoch taken over", address=left.address)
        self._become(registry_pb2.REPLICA_STATE_READY, "goes on after the coordinator was away")

    async def _build(self) -> None:
        started = monotonic()
        self.state.epoch += 1
        self._become(registry_pb2.REPLICA_STATE_STARTING, f"looking for room{self._before}")
        nodes = {node.name: node for node in await asyncio.to_thread(ray_nodes)}
        placement = self._find_room(nodes)
        secret = self._record.begin_epoch(self.state.id, self.state.epoch, self._blueprint, self._placement)
        self._epoch = self._new_epoch(secret)
        self._log(logging.INFO, "epoch started", nodes=self._placement, cut=_cut(self._blueprint))

        def begin(what: str) -> None:
            self._become(registry_pb2.REPLICA_STATE_STARTING, f"{what}{self._before}")

        read = await self._epoch.build(placement, len(nodes) == 1, begin)
        self._record.ready(self.state.id, self._epoch.address)
        cut = f", in another cut: {_cut(self._blueprint)}" if self.recut else ""
        seconds = monotonic() - started
        self._log(logging.INFO, "epoch ready", seconds=round(seconds, 3), bytes=read, address=self._epoch.address)
        detail = f"ready after {seconds:.1f} s, {read / 1e6:,.0f} MB read{cut}"
        self._become(registry_pb2.REPLICA_STATE_READY, detail)

    def _new_epoch(self, secret: str) -> Epoch:
        replica, number = self.state.id, self.state.epoch
        name = epoch_name(self._planned.spec.name, self._record.life, replica, number)
        return Epoch(self._blueprint, replica, number, name, secret, self._record.detached)

    def _find_room(self, nodes: dict[str, RayNode]) -> list[RayNode]:
        """The node of each rank: as before if these live and nobody else took them, otherwise wherever there is room
        now; in the planned cut if it fits, otherwise in the quickest that does."""
        planned = self._planned
        if self.recut or not self._placement or not nodes.keys() >= set(self._placement):
            try:
                self._blueprint, self._placement = planned, place(planned, list(nodes.values()))
            except PlanError:
                if not planned.spec.recut:
                    raise
                self._blueprint = redraw(planned, list(nodes.values()))
                self._placement = [node for node, _ in self._blueprint.plan.replica_devices[0]]
        return [nodes[name] for name in self._placement]

    def _would_fit(self, nodes: list[RayNode]) -> bool:
        """Whether the planned cut has room on `nodes` once this epoch has left them."""
        try:
            place(self._planned, self.left(nodes))
        except PlanError:
            return False
        return True

    def _log(self, level: int, event: str, **fields: object) -> None:
        log.log(level, event, extra={"replica": self.state.id, "epoch": self.state.epoch, **fields})

    def _become(self, state: registry_pb2.ReplicaState, detail: str) -> None:
        self.state.state, self.state.detail = state, detail
        serves = state in (registry_pb2.REPLICA_STATE_READY, registry_pb2.REPLICA_STATE_DRAINING)
        self.state.address = self._epoch.address if self._epoch is not None and serves else ""
        del self.state.ranks[:]
        self.state.ranks.extend([] if self._epoch is None else self._epoch.ranks)
        self.state.tp, self.state.pp = self._blueprint.plan.tp, self._blueprint.plan.pp
        self._publish()


def _cut(blueprint: Blueprint) -> str:
    return f"tp={blueprint.plan.tp} pp={blueprint.plan.pp}"
