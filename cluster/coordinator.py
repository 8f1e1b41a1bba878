"""The coordinator: a named Ray actor that plans the deployment and keeps its replicas alive.

It belongs to the job that serves: when that job ends, in whatever way, Ray removes the coordinator, and with it the
ranks and placement groups that it owns. Nothing is left behind even when `phalanx serve` is killed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from cluster.registry import Registry
from cluster.replica import Blueprint, ReplicaLife
from cluster.spec import DeploymentSpec
from cluster.topology import RayNode, ray_nodes, topology_of
from partitioning.checkpoint import open_checkpoint
from partitioning.host_speed import host_speed
from partitioning.model_spec import ModelSpec
from partitioning.plan import Plan
from partitioning.plan_json import plan_to_json
from partitioning.planner import auto_plan, make_plan
from partitioning.settings import PlanSettings, plan_settings
from partitioning.topology import usable_cores
from workers.request import EngineConfig

NAMESPACE = "phalanx"


@dataclass(frozen=True)
class Opened:
    """Where the registry is, as host:port, and the plan."""

    registry: str
    plan_json: str


def actor_name(deployment: str) -> str:
    return f"coordinator:{deployment}"


class Coordinator:
    """The actor. `open` it, wait for it to have `started`, `close` it."""

    def __init__(self, spec_json: str) -> None:
        self._spec = DeploymentSpec.model_validate_json(spec_json)
        self._registry = Registry(self._spec.name)
        self._replicas: list[ReplicaLife] = []
        self._lives: list[asyncio.Task[None]] = []
        self._closed = asyncio.Event()

    async def open(self) -> Opened:
        """Plans, and begins to build the replicas.

        Raises:
            PlanError: it does not fit the cluster; the message says what is missing.
            CheckpointError: the model cannot be read on this node.
        """
        nodes = ray_nodes()
        with open_checkpoint(self._spec.model) as checkpoint:
            model = checkpoint.spec
        settings = self._settings(model)
        plan = self._plan(model, settings, nodes)
        engine_json = json.dumps(dataclasses.asdict(self._engine_config(model, settings)))
        blueprint = Blueprint(self._spec.name, plan, plan_to_json(plan), engine_json)
        host = "127.0.0.1" if len(nodes) == 1 else ray.util.get_node_ip_address()
        port = await self._registry.start(host)
        self._registry.set_model(blueprint.plan_json, engine_json)
        self._replicas = [ReplicaLife(number, blueprint, self._publish) for number in range(plan.replicas)]
        self._lives = [asyncio.create_task(replica.live()) for replica in self._replicas]
        return Opened(f"{host}:{port}", blueprint.plan_json)

    async def started(self) -> None:
        """Returns when every replica has been ready once.

        Raises:
            ReplicaError: one could not be built.
        """
        await asyncio.gather(*(replica.first for replica in self._replicas))

    async def close(self) -> None:
        """Ends the replicas, and leaves no actor or placement group behind."""
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        await asyncio.gather(*(replica.stop() for replica in self._replicas))
        await self._registry.stop()
        self._closed.set()

    async def until_closed(self) -> None:
        """Returns after `close`; a caller notices by it when this actor dies."""
        await self._closed.wait()

    def _settings(self, model: ModelSpec) -> PlanSettings:
        spec = self._spec
        return plan_settings(
            model,
            dtype=spec.dtype,
            weights=spec.weights,
            kv_cache=spec.kv_cache,
            max_model_len=spec.max_model_len,
            max_batch_tokens=spec.max_batch_tokens,
            kv_block_size=spec.kv_block_size,
            kv_cache_tokens=spec.kv_cache_tokens,
            memory_fraction=spec.memory_fraction,
        )

    def _plan(self, model: ModelSpec, settings: PlanSettings, nodes: Sequence[RayNode]) -> Plan:
        spec = self._spec
        tp, pp, replicas = spec.tp or 1, spec.pp or 1, spec.replicas or 1
        # CPU nodes are taken to be like this one: what counts for a cut is how they compare.
        topology = topology_of(
            nodes,
            spec.devices,
            None if spec.auto else tp,
            None if spec.auto else tp * pp * replicas,
            host_speed(usable_cores()),
        )
        if spec.auto:
            return auto_plan(
                model, spec.model, topology, settings, replicas=spec.replicas, concurrency=spec.concurrency
            )
        return make_plan(
            model, spec.model, topology, settings, tp=tp, pp=pp, replicas=replicas, layer_split=spec.layer_split
        )

    def _engine_config(self, model: ModelSpec, settings: PlanSettings) -> EngineConfig:
        spec = self._spec
        return EngineConfig(
            max_running=spec.max_running,
            max_waiting=spec.max_waiting,
            max_batch_tokens=spec.max_batch_tokens,
            max_stretch=spec.max_stretch,
            news_interval_s=spec.news_interval_ms / 1000,
            max_model_len=settings.max_model_len,
            prefix_caching=spec.prefix_caching,
            collective_timeout_s=spec.collective_timeout_s,
            eos_token_ids=model.eos_token_ids,
        )

    def _publish(self) -> None:
        self._registry.set_replicas([replica.state for replica in self._replicas])
