"""A plan for human eyes."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from partitioning.plan import Plan, Span

# The table wants this many columns; narrower output (a pipe, a log) would cut its cells short.
TABLE_WIDTH = 150

# A longer table is no help; the JSON has every rank.
_MOST_RANKS = 64


def plan_table(plan: Plan) -> Group:
    """A table of one replica's ranks, the devices of the other replicas, the totals, and the reasons for the choice."""
    parts: list[RenderableType] = [_heading(plan), _ranks(plan)]
    if plan.replicas > 1:
        parts.append(_replicas(plan))
    parts.append(_totals(plan))
    parts.extend(Text(f"• {line}", style="dim") for line in (*plan.model.notes, *plan.prediction.explanation))
    return Group(*parts)


def _heading(plan: Plan) -> Text:
    model = plan.model
    return Text(
        f"{model.name}: {model.family}, {model.num_layers} layers, {model.num_heads} heads / {model.num_kv_heads} KV, "
        f"{plan.dtype}, weights {plan.weights}, KV cache {plan.kv_cache}; "
        f"tp={plan.tp} pp={plan.pp} replicas={plan.replicas}",
        style="bold",
    )


def _ranks(plan: Plan) -> Table:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD)
    for name in ("rank", "node", "device", "stage", "layers", "heads", "KV heads", "MLP columns", "vocabulary"):
        table.add_column(name, justify="left" if name in ("node", "device") else "right", no_wrap=True)
    for name in ("weights", "KV tokens", "decode", "prefill"):
        table.add_column(name, justify="right", no_wrap=True)
    kv_tokens = f"{plan.kv_blocks * plan.kv_block_size:,}"
    for rank in plan.ranks[:_MOST_RANKS]:
        table.add_row(
            str(rank.rank),
            rank.node,
            rank.device,
            str(rank.stage),
            *map(_span, (rank.layers, rank.heads, rank.kv_heads, rank.mlp, rank.vocab)),
            f"{rank.weight_bytes / 1e6:,.1f} MB",
            kv_tokens if len(rank.kv_heads) else "–",
            _duration(rank.decode_seconds),
            _duration(rank.prefill_seconds),
            end_section=rank.tp_rank == plan.tp - 1,
        )
    if len(plan.ranks) > _MOST_RANKS:
        table.caption = f"and {len(plan.ranks) - _MOST_RANKS} more ranks; --json has them all"
    return table


def _replicas(plan: Plan) -> Table:
    table = Table("replica", "devices", header_style="bold", box=box.SIMPLE_HEAD)
    for number, devices in enumerate(plan.replica_devices):
        by_node: dict[str, list[str]] = {}
        for node, device in devices:
            by_node.setdefault(node, []).append(device)
        table.add_row(str(number), "; ".join(f"{node}: {', '.join(names)}" for node, names in by_node.items()))
    return table


def _totals(plan: Plan) -> Text:
    prediction = plan.prediction
    total = sum(rank.weight_bytes for rank in plan.ranks)
    return Text(
        f"one replica: {total / 1e6:,.1f} MB of weights, {plan.kv_blocks:,} KV blocks of {plan.kv_block_size} tokens; "
        f"predicted {_duration(prediction.decode_seconds)} a token (batch 1), "
        f"{_duration(prediction.prefill_seconds)} for a prompt of {prediction.prefill_tokens} tokens"
    )


def _span(span: Span) -> str:
    """The first and the last of the span."""
    return f"{span.start}–{span.stop - 1}" if len(span) else "–"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
