"""What replicas are built from: a deployment's spec, and the plan that was made of it for a cluster."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cluster.drafting import draft_of
from cluster.spec import DeploymentSpec
from cluster.topology import RayNode, topology_of
from partitioning.checkpoint import open_checkpoint
from partitioning.host_speed import host_speed
from partitioning.model_spec import ModelSpec
from partitioning.placement import place_ranks
from partitioning.plan import Plan
from partitioning.plan_json import plan_from_json, plan_to_json
from partitioning.planner import auto_plan, make_plan
from partitioning.settings import PlanSettings, plan_settings
from partitioning.topology import ETHERNET, Topology, cpu_node, usable_cores
from workers.objectives import Objectives
from workers.request import EngineConfig


@dataclass(frozen=True)
class Blueprint:
    """`generation` counts the specs that a deployment has had, from 1."""

    spec: DeploymentSpec
    generation: int
    plan: Plan
    engine_json: str

    @cached_property
    def plan_json(self) -> str:
        return plan_to_json(self.plan)

    def to_json(self) -> str:
        return json.dumps(
            {
                "spec": self.spec.model_dump_json(),
                "generation": self.generation,
                "plan": self.plan_json,
                "engine": self.engine_json,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Blueprint:
        fields = json.loads(text)
        spec = DeploymentSpec.model_validate_json(fields["spec"])
        return cls(spec, fields["generation"], plan_from_json(fields["plan"]), fields["engine"])


def draw(spec: DeploymentSpec, generation: int, nodes: Sequence[RayNode]) -> Blueprint:
    """The blueprint of `spec` for what is free on `nodes`.

    Raises:
        PlanError: it does not fit; the message says what is missing.
        CheckpointError, DraftError: a model cannot be read on this node, or used.
    """
    model, settings = _model(spec)
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
        plan = auto_plan(model, spec.model, topology, settings, replicas=spec.replicas, concurrency=spec.concurrency)
    else:
        plan = make_plan(
            model, spec.model, topology, settings, tp=tp, pp=pp, replicas=replicas, layer_split=spec.layer_split
        )
    return Blueprint(spec, generation, plan, _engine_json(spec, model, settings))


def redraw(blueprint: Blueprint, nodes: Sequence[RayNode]) -> Blueprint:
    """One replica of the same deployment in another cut, the quickest that fits what is left of the cluster.

    Raises:
        PlanError: nothing fits.
    """
    spec = blueprint.spec
    model, settings = _model(spec)
    topology = topology_of(nodes, spec.devices, None, None, host_speed(usable_cores()))
    plan = auto_plan(model, spec.model, topology, settings, replicas=1, concurrency=spec.concurrency)
    return dataclasses.replace(blueprint, plan=plan)


def place(blueprint: Blueprint, nodes: list[RayNode]) -> list[str]:
    """The nodes for the ranks of one more replica, where there is room.

    Raises:
        PlanError: there is none.
    """
    plan = blueprint.plan
    if plan.ranks[0].device.startswith("cuda"):
        topology = topology_of(nodes, "cuda", None, None)
    else:
        threads = max(rank.threads for rank in plan.ranks)
        hosts = [cpu_node(n.name, n.cpus // threads, n.cpus, n.memory_bytes) for n in nodes if n.cpus >= threads]
        topology = Topology(tuple(hosts), ETHERNET)
    return [place.node for place in place_ranks(topology, plan.tp, plan.pp, 1)[0]]


def _model(spec: DeploymentSpec) -> tuple[ModelSpec, PlanSettings]:
    with open_checkpoint(spec.model) as checkpoint:
        model = checkpoint.spec
    settings = plan_settings(
        model,
        dtype=spec.dtype,
        weights=spec.weights,
        kv_cache=spec.kv_cache,
        max_model_len=spec.max_model_len,
        max_batch_tokens=spec.max_batch_tokens,
        kv_block_size=spec.kv_block_size,
        kv_cache_tokens=spec.kv_cache_tokens,
        memory_fraction=spec.memory_fraction,
        draft=draft_of(model, spec.draft_model, spec.draft_layers),
    )
    return model, settings


def _engine_json(spec: DeploymentSpec, model: ModelSpec, settings: PlanSettings) -> str:
    config = EngineConfig(
        max_running=spec.max_running,
        max_waiting=spec.max_waiting,
        max_waiting_tokens=spec.max_waiting_tokens,
        max_batch_tokens=spec.max_batch_tokens,
        max_stretch=spec.max_stretch,
        objectives=Objectives() if spec.objectives is None else Objectives(spec.objectives.ttft, spec.objectives.tpot),
        news_interval_s=spec.news_interval_ms / 1000,
        max_model_len=settings.max_model_len,
        prefix_caching=spec.prefix_caching,
        speculation=spec.speculation,
        draft_model=spec.draft_model or "",
        draft_layers=spec.draft_layers or 0,
        collective_timeout_s=spec.collective_timeout_s,
        eos_token_ids=model.eos_token_ids,
    )
    return json.dumps(dataclasses.asdict(config))
