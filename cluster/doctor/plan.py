"""Does the deployment fit, and what will it take of each node?"""

from __future__ import annotations

import platform
from collections.abc import Sequence

from cluster.doctor.finding import Finding, failed, ok
from cluster.doctor.gpus import driver_cuda
from cluster.doctor.needs import Share, shares
from cluster.lifecycle.blueprint import draw
from cluster.spec import DeploymentSpec
from cluster.topology import RayNode
from partitioning.checkpoint import CheckpointError
from partitioning.plan import PlanError
from partitioning.topology import usable_cores, usable_memory

_CHECK = "plan"


def planned(spec: DeploymentSpec, nodes: Sequence[RayNode]) -> tuple[list[Finding], dict[str, Share]]:
    """By the node's name, what the plan would put there; nothing where there can be none."""
    try:
        blueprint = draw(spec, 1, nodes)
    except PlanError as error:
        return [failed(_CHECK, str(error), "phalanx plan MODEL --auto shows cuts that fit, and why others do not")], {}
    except CheckpointError:
        return [], {}  # the check of the model says it
    plan, taken = blueprint.plan, shares(blueprint)
    shown = ", ".join(f"{node} {share.ranks}" for node, share in taken.items())
    return [ok(_CHECK, f"tp={plan.tp} pp={plan.pp} replicas={plan.replicas}; ranks: {shown}")], taken


def this_node(spec: DeploymentSpec) -> tuple[list[Finding], dict[str, Share]]:
    """The same on this machine's CPU by itself. What Ray says of GPUs, only `--cluster` knows."""
    if spec.devices != "cpu" and driver_cuda() is not None:
        return [ok(_CHECK, "not made, as there are GPUs: --cluster asks Ray for them")], {}
    ranks = (spec.tp or 1) * (spec.pp or 1) * (spec.replicas or 1)
    cores = max(usable_cores(), ranks)
    return planned(spec, [RayNode(platform.node(), "", "127.0.0.1", cores, 0, None, usable_memory())])
