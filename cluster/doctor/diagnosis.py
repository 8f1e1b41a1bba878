"""All checks, of this machine or of every node of a Ray cluster."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

from cluster.doctor.finding import Finding
from cluster.doctor.gateway import gateway_findings
from cluster.doctor.needs import Needs, Share
from cluster.doctor.node import examine
from cluster.doctor.plan import this_node
from cluster.doctor.ray_token import ray_token
from cluster.models import ModelError, resolve_model
from cluster.spec import DeploymentSpec

Say = Callable[[str], None]

HERE, FOR_THE_GATEWAY = "this machine", "this machine, for the gateway"


@dataclass(frozen=True)
class Place:
    """`name` is a node's, or what else the findings are of."""

    name: str
    findings: list[Finding]


def of_this_machine(spec: DeploymentSpec | None, say: Say) -> list[Place]:
    """Without Ray. Takes seconds; a minute more where the native engine has to be compiled."""
    say(f"examining {HERE}")
    if spec is None:
        return [Place(HERE, [*examine(Needs()).findings, ray_token()])]
    spec = with_path(spec)
    made, shares = this_node(spec)
    needs = node_needs(spec, shares.get(platform.node(), Share()), "127.0.0.1", alone=True)
    own = Place(HERE, [*examine(needs).findings, ray_token(), *made])
    return [own, Place(FOR_THE_GATEWAY, list(gateway_findings(spec)))]


def with_path(spec: DeploymentSpec) -> DeploymentSpec:
    """The spec with its model's path; where there is none here, the check of the model says so."""
    try:
        return spec.model_copy(update={"model": str(resolve_model(spec.model).resolve())})
    except ModelError:
        return spec


def node_needs(spec: DeploymentSpec, share: Share, address: str, alone: bool) -> Needs:
    """Of a node with such a share. On a cluster of one node (`alone`) nothing is reached from outside."""
    host, _, port = (spec.registry_listen or "").rpartition(":")
    return Needs(
        address="127.0.0.1" if alone and not port else address,
        model=spec.model,
        memory_bytes=share.memory_bytes,
        shared_bytes=share.shared_bytes,
        gpus=share.gpus if share.ranks else None,
        gpu_bytes=share.gpu_bytes,
        native=not share.gpus and spec.dtype != "float16",
        internal_tls=spec.internal_tls,
        registry_port=int(port) if port and host in ("", address) else 0,
    )
