"""From (model, topology) to a plan: cut as asked, or the quickest cut there is."""

from __future__ import annotations

from collections.abc import Sequence

from partitioning.assembly import cut_replica, number_ranks
from partitioning.model_spec import ModelSpec
from partitioning.plan import Plan
from partitioning.search import search
from partitioning.settings import PlanSettings, plan_settings
from partitioning.topology import Topology


def make_plan(
    model: ModelSpec,
    model_path: str,
    topology: Topology,
    settings: PlanSettings | None = None,
    *,
    tp: int,
    pp: int,
    replicas: int = 1,
    device_weights: Sequence[float] | None = None,
    layer_split: Sequence[int] | None = None,
) -> Plan:
    """The plan for `replicas` replicas of `pp` stages of `tp` ranks. Without `settings` the model's defaults hold.

    `device_weights` are the ranks' shares of their stage, one a rank of a stage (`tp` of them) or of a replica
    (`tp * pp`); without them they follow the devices' speed. `layer_split` is the number of layers of each stage;
    without it the stages' predicted times are balanced.

    Raises:
        PlanError: the cluster has too few devices, or a rank too little memory, or an argument is out of range.
    """
    settings = settings or plan_settings(model)
    places, stages = cut_replica(model, settings, topology, tp, pp, replicas, device_weights, layer_split)
    return number_ranks(model, model_path, settings, places, stages)


def auto_plan(
    model: ModelSpec,
    model_path: str,
    topology: Topology,
    settings: PlanSettings | None = None,
    *,
    replicas: int | None = None,
    concurrency: int = 32,
) -> Plan:
    """The plan that is predicted to answer `concurrency` simultaneous requests soonest, among all that fit.

    A concurrency of 1 asks for the least latency, a great one for throughput. Without `replicas`, as many copies of a
    layout as the cluster holds share the requests. The plan's explanation says why the others lost.

    Raises:
        PlanError: nothing fits; the message has the reason of the layout that came nearest.
    """
    settings = settings or plan_settings(model)
    found = search(model, settings, topology, replicas, concurrency)
    return number_ranks(model, model_path, settings, found.places, found.stages, found.explanation)
