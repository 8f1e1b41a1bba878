"""One frame of `phalanx top`: the document as a screen of a given size, readable from 40 columns on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.status.document import Event, Objectives, Rank, Replica, Status
from cluster.status.rates import Rates, total

_STYLES = {"ready": "green", "starting": "yellow", "draining": "yellow", "failed": "bold red"}
_KINDS = {"epoch_ended": "bold red", "epoch_ready": "green", "replica_draining": "yellow"}
_UNKNOWN = "–"
_LATE_S = 5.0  # ranks speak every second
_ENDLESS = 1 << 20
_TABLE_LINES = 3  # beside its rows: an empty one before, header and rule
_TITLE_LINES = 2
_LEAST_ROWS = 2
_FEW_EVENTS, _MOST_EVENTS = 3, 8
_BAR = 30
_GAP = "   "

T = TypeVar("T")


@dataclass(frozen=True)
class _Column(Generic[T]):
    """`width` is the screen's from which on it is shown."""

    name: str
    text: Callable[[T], str | Text]
    width: int = 0
    right: bool = True


def frame(now: Status, rates: Mapping[int, Rates], address: str, width: int, height: int | None = None) -> Group:
    """What fits `width` columns and `height` lines; all of it where there is no `height`."""
    parts: list[RenderableType] = [line for items in _head(now, rates, address) for line in _packed(items, width)]
    room = (_ENDLESS if height is None else height) - len(parts)
    for_events = _TITLE_LINES + min(_FEW_EVENTS, len(now.events)) if now.events else 0
    placed = [(replica, rank) for replica in now.replicas for rank in replica.ranks]

    replicas = _table(_replica_columns(rates), now.replicas, width, (room - for_events) // 2 - _TABLE_LINES)
    parts += ["", replicas]
    room -= replicas.row_count + _TABLE_LINES
    if placed and room - for_events >= _TABLE_LINES + _LEAST_ROWS:
        ranks = _table(_RANK_COLUMNS, placed, width, room - for_events - _TABLE_LINES)
        parts += ["", ranks]
        room -= ranks.row_count + _TABLE_LINES
    if now.events and room > _TITLE_LINES:
        latest = list(reversed(now.events))[: min(_MOST_EVENTS, room - _TITLE_LINES)]
        parts += ["", Text("latest events", style="bold"), *map(_event, latest)]
    return Group(*parts)


def unreachable(address: str, complaint: str, since_s: float) -> Text:
    """The line above a frame that is no longer true."""
    return Text(f"{address} is not reachable, trying again (since {since_s:.0f} s): {complaint}", style="bold red")


def _head(now: Status, rates: Mapping[int, Rates], address: str) -> list[list[str | Text]]:
    ready = sum(replica.state == "ready" and replica.connected for replica in now.replicas)
    state = "draining" if now.gateway.draining else "serving" if ready else "no replica is ready"
    running, waiting = total(now.replicas, lambda x: x.running), total(now.replicas, lambda x: x.waiting)
    moment = datetime.fromtimestamp(now.unix_s).strftime("%H:%M:%S")
    title = Text(f"{now.deployment or 'deployment'} at {address}", style="bold")
    streams = f"streams running {running:,} waiting {waiting:,}"
    return [
        [title, state, f"{ready} of {len(now.replicas)} replicas ready", moment],
        [f"requests here {now.gateway.active_requests:,}", streams, _throughput(rates)],
        _latency(now),
        *([] if now.objectives is None else [_objectives(now.objectives)]),
        _kv(now.replicas),
    ]


def _packed(items: Sequence[str | Text], width: int) -> list[Text]:
    """As few lines as hold them, none of them broken."""
    lines = [Text(no_wrap=True, overflow="ellipsis")]
    for item in items:
        text = Text(item) if isinstance(item, str) else item
        if lines[-1] and lines[-1].cell_len + len(_GAP) + text.cell_len > width:
            lines.append(Text(no_wrap=True, overflow="ellipsis"))
        if lines[-1]:
            lines[-1].append(_GAP)
        lines[-1].append_text(text)
    return lines


def _throughput(rates: Mapping[int, Rates]) -> str:
    if not rates:
        return f"tokens/s in {_UNKNOWN} out {_UNKNOWN}"
    prompt, generated = sum(r.prompt for r in rates.values()), sum(r.generated for r in rates.values())
    return f"tokens/s in {prompt:,.0f} out {generated:,.0f}"


def _latency(now: Status) -> list[str | Text]:
    recent = now.recent
    if recent is None:
        return ["nothing has finished here in 5 minutes"]
    return [
        f"TTFT p50 {_ms(recent.ttft_p50_s)} p95 {_ms(recent.ttft_p95_s)}",
        f"TPOT p50 {_ms(recent.tpot_p50_s)} p95 {_ms(recent.tpot_p95_s)}",
        f"({recent.outputs:,} outputs here in 5 minutes)",
    ]


def _objectives(promise: Objectives) -> list[str | Text]:
    named = [f"{name} {_ms(s)}" for name, s in (("TTFT", promise.ttft_s), ("TPOT", promise.tpot_s)) if s is not None]
    kept = f"{promise.kept / promise.finished:.1%}" if promise.finished else _UNKNOWN
    shed = f"{promise.shed:,} refused as late"
    return [f"objectives {', '.join(named)}", f"kept by {kept} of {promise.finished:,}", shed]


def _kv(replicas: Sequence[Replica]) -> list[str | Text]:
    listed = list(replicas)
    every = total(listed, lambda load: load.kv_blocks)
    used, cached = total(listed, lambda x: x.kv_blocks_used), total(listed, lambda x: x.kv_blocks_cached)
    if not every:
        return [f"KV blocks {_UNKNOWN}"]
    full, warm = round(_BAR * used / every), round(_BAR * cached / every)
    prompt, hits = total(listed, lambda x: x.prompt_tokens), total(listed, lambda x: x.cached_prompt_tokens)
    bar = (("█" * full, "cyan"), ("▒" * warm, "blue"), ("░" * max(0, _BAR - full - warm), "dim"))
    return [
        Text.assemble("KV blocks ", *bar),
        f"used {used:,} cached {cached:,} free {every - used - cached:,}",
        f"prefix hits {hits / prompt:.0%} of {prompt:,} tokens" if prompt else f"prefix hits {_UNKNOWN}",
    ]


def _replica_columns(rates: Mapping[int, Rates]) -> list[_Column[Replica]]:
    def rate(of: Callable[[Rates], float | None], form: str) -> Callable[[Replica], str]:
        def text(replica: Replica) -> str:
            value = of(rates[replica.id]) if replica.id in rates else None
            return _UNKNOWN if value is None else format(value, form)

        return text

    return [
        _Column("replica", lambda r: str(r.id)),
        _Column("epoch", lambda r: str(r.epoch)),
        _Column("state", _state, right=False),
        _Column("layout", lambda r: f"tp={r.tp} pp={r.pp}" if r.tp else _UNKNOWN, 72, right=False),
        _Column("run", lambda r: f"{r.load.running:,}" if r.load else _UNKNOWN),
        _Column("wait", lambda r: f"{r.load.waiting:,}" if r.load else _UNKNOWN),
        _Column("in/s", rate(lambda r: r.prompt, ",.0f"), 60),
        _Column("out/s", rate(lambda r: r.generated, ",.0f")),
        _Column("hits", rate(lambda r: r.prefix_hits, ".0%"), 90),
        _Column("KV used", lambda r: f"{r.load.kv_blocks_used:,}" if r.load else _UNKNOWN, 80),
        _Column("cached", lambda r: f"{r.load.kv_blocks_cached:,}" if r.load else _UNKNOWN, 96),
        _Column("free", lambda r: f"{r.load.kv_blocks_free:,}" if r.load else _UNKNOWN, 96),
        _Column("last", lambda r: r.detail, 120, right=False),
    ]


_RANK_COLUMNS: list[_Column[tuple[Replica, Rank]]] = [
    _Column("rank", lambda p: f"{p[0].id}.{p[1].rank}"),
    _Column("node", lambda p: p[1].node, 60, right=False),
    _Column("device", lambda p: p[1].device or _UNKNOWN, right=False),
    _Column("memory", lambda p: _memory(p[1])),
    _Column("heard", lambda p: _heard(p[1])),
    _Column("pid", lambda p: str(p[1].pid), 80),
    _Column("doing", lambda p: p[1].doing or _UNKNOWN, 80, right=False),
]


def _table(columns: Sequence[_Column[T]], rows: Sequence[T], width: int, most: int) -> Table:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown = [column for column in columns if column.width <= width]
    for column in shown:
        table.add_column(column.name, justify="right" if column.right else "left", no_wrap=True, overflow="ellipsis")
    most = max(most, _LEAST_ROWS)
    fitting = rows if len(rows) <= most else rows[: most - 1]
    for row in fitting:
        table.add_row(*(_cell(column.text(row)) for column in shown))
    if len(fitting) < len(rows):
        table.add_row("…", f"+{len(rows) - len(fitting)}")
    return table


def _cell(content: str | Text) -> Text:
    """What comes from elsewhere is not to be read as Rich's markup."""
    return Text(content) if isinstance(content, str) else content


def _state(replica: Replica) -> Text:
    if replica.state == "ready" and not replica.connected:
        return Text("unreachable", style="bold red")
    return Text(replica.state, style=_STYLES.get(replica.state, ""))


def _memory(rank: Rank) -> str:
    if not rank.memory_total_bytes or rank.memory_bytes is None:
        return _UNKNOWN
    return f"{rank.memory_bytes / 1e9:.1f}/{rank.memory_total_bytes / 1e9:.0f} GB"


def _heard(rank: Rank) -> Text:
    if rank.heard_s is None:
        return Text(_UNKNOWN)
    return Text(f"{rank.heard_s:.1f} s", style="bold red" if rank.heard_s > _LATE_S else "")


def _event(event: Event) -> Text:
    what = event.kind.replace("_", " ")
    if event.replica is not None:
        what = f"replica {event.replica} epoch {event.epoch} {what.removeprefix('epoch ').removeprefix('replica ')}"
    return Text.assemble(
        (f"{datetime.fromtimestamp(event.unix_s):%H:%M:%S} ", "dim"),
        (what, _KINDS.get(event.kind, "")),
        f"  {event.detail}",
        no_wrap=True,
        overflow="ellipsis",
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"
