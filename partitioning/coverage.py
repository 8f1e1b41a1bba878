"""Does a plan hold together? Asked of every plan that is made, and of every plan that is read."""

from __future__ import annotations

from collections.abc import Sequence

from partitioning.cuts import kv_span
from partitioning.model_spec import ModelSpec
from partitioning.plan import Plan, PlanError, RankPlan, Span


def check_plan(plan: Plan) -> None:
    """Checks that the ranks are in order and that their slices are the whole model, nothing twice but shared KV heads.

    Raises:
        PlanError: what is wrong, and on which rank or stage.
    """
    _check_order(plan)
    layers = [plan.stage(stage)[0].layers for stage in range(plan.pp)]
    _check_tiles("layers of the stages", layers, plan.model.num_layers)
    if any(len(span) == 0 for span in layers):
        raise PlanError("every stage needs a layer: lower pp, or move a layer from a neighbour")
    for number in range(plan.pp):
        _check_stage(plan, number)
    if plan.kv_block_size < 1 or plan.kv_blocks < 1:
        raise PlanError(f"kv_block_size {plan.kv_block_size} and kv_blocks {plan.kv_blocks} must be at least 1")
    _check_devices(plan)


def _check_order(plan: Plan) -> None:
    if plan.tp < 1 or plan.pp < 1 or len(plan.ranks) != plan.tp * plan.pp:
        raise PlanError(f"tp={plan.tp} × pp={plan.pp} needs {plan.tp * plan.pp} ranks, the plan has {len(plan.ranks)}")
    for number, rank in enumerate(plan.ranks):
        expected = (number, number // plan.tp, number % plan.tp)
        if (rank.rank, rank.stage, rank.tp_rank) != expected:
            raise PlanError(
                f"ranks must be listed by stage and tp_rank: entry {number} should have (rank, stage, tp_rank) "
                f"{expected}, it has {(rank.rank, rank.stage, rank.tp_rank)}"
            )


def _check_stage(plan: Plan, number: int) -> None:
    model, ranks = plan.model, plan.stage(number)
    odd = next((rank for rank in ranks if rank.layers != ranks[0].layers), None)
    if odd is not None:
        raise PlanError(f"stage {number}: the layers of rank {odd.rank} differ from those of rank {ranks[0].rank}")
    _check_tiles(f"stage {number}: query heads", [rank.heads for rank in ranks], model.num_heads)
    _check_tiles(f"stage {number}: MLP columns", [rank.mlp for rank in ranks], model.intermediate_size)
    outer = number in (0, plan.pp - 1)
    _check_tiles(f"stage {number}: vocabulary rows", [rank.vocab for rank in ranks], model.vocab_size if outer else 0)
    for rank in ranks:
        _check_heads(model, rank)


def _check_heads(model: ModelSpec, rank: RankPlan) -> None:
    heads, kv_heads, group = rank.heads, rank.kv_heads, model.group_size
    read = kv_span(heads, group)
    if len(heads) == 0:
        if len(kv_heads):
            raise PlanError(f"rank {rank.rank} has KV heads {_text(kv_heads)} but no query head that reads them")
    elif kv_heads != read:
        raise PlanError(
            f"rank {rank.rank}: query heads {_text(heads)} need the KV heads they read (head h reads h // {group}), "
            f"which are {_text(read)}, got KV heads {_text(kv_heads)}"
        )


def _check_tiles(what: str, spans: Sequence[Span], total: int) -> None:
    """Empty spans may lie anywhere; the others follow each other from 0 to `total`."""
    edge = 0
    for span in spans:
        if len(span) == 0:
            continue
        if span.start != edge:
            raise PlanError(f"{what}: {_text(span)} should begin at {edge}, for the slices have no gap and no overlap")
        edge = span.stop
    if edge != total:
        raise PlanError(f"{what}: the slices end at {edge}, there are {total}")


def _check_devices(plan: Plan) -> None:
    if not plan.replica_devices:
        raise PlanError("replica_devices is empty: a plan has at least one replica")
    taken: set[tuple[str, str]] = set()
    for number, devices in enumerate(plan.replica_devices):
        if len(devices) != len(plan.ranks):
            raise PlanError(f"replica {number} has {len(devices)} devices for {len(plan.ranks)} ranks")
        for node, device in devices:
            if (node, device) in taken:
                raise PlanError(f"{device} of node {node} is given to more than one rank")
            taken.add((node, device))
    for rank, (node, device) in zip(plan.ranks, plan.replica_devices[0], strict=True):
        if (rank.node, rank.device) != (node, device):
            raise PlanError(
                f"rank {rank.rank} is on {rank.node} {rank.device}, but replica_devices[0] puts it on {node} {device}"
            )


def _text(span: Span) -> str:
    return f"[{span.start}, {span.stop})"
