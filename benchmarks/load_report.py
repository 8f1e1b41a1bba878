"""What became of a load's requests, by tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Outcome:
    """One request. Times in seconds; `tpot_s` is the mean time between its tokens. `ended` is "done", "refused" or the
    name of an error. A slow reader's times say how slow it was, and are left out of the percentiles."""

    tenant: str
    slow: bool
    ended: str
    tokens: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    answered_s: float = 0.0


@dataclass(frozen=True)
class Objective:
    """What a request has to keep to so that its tokens count as goodput, in seconds."""

    ttft_s: float
    tpot_s: float

    def met(self, outcome: Outcome) -> bool:
        if outcome.ended != "done" or outcome.ttft_s is None:
            return False
        return outcome.slow or (outcome.ttft_s <= self.ttft_s and (outcome.tpot_s or 0) <= self.tpot_s)


@dataclass(frozen=True)
class Row:
    """A tenant's figures; `others` counts errors by name, percentiles are of 50, 90 and 99 %."""

    tenant: str
    requests: int
    done: int
    refused: int
    others: dict[str, int]
    tokens_per_s: float
    goodput_tokens_per_s: float
    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    refusal_ms: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def rows(outcomes: Sequence[Outcome], objective: Objective, seconds: float) -> list[Row]:
    """One for each tenant, and one for all where there are several."""
    tenants = sorted({outcome.tenant for outcome in outcomes})
    found = [_row(name, [o for o in outcomes if o.tenant == name], objective, seconds) for name in tenants]
    return found if len(found) == 1 else [*found, _row("all", outcomes, objective, seconds)]


def table(found: Sequence[Row]) -> str:
    """The rows, in Markdown."""
    lines = [
        "| tenant | requests | done | refused | other | tok/s | goodput tok/s | TTFT ms p50 / p90 / p99 | "
        "TPOT ms p50 / p90 / p99 | refused after ms p50 / p90 / p99 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        others = ", ".join(f"{count} {name}" for name, count in sorted(row.others.items())) or "–"
        lines.append(
            f"| {row.tenant or '–'} | {row.requests} | {row.done} | {row.refused} | {others} | "
            f"{row.tokens_per_s:.0f} | {row.goodput_tokens_per_s:.0f} | "
            f"{_each(row.ttft_ms)} | {_each(row.tpot_ms, 1)} | {_each(row.refusal_ms)} |"
        )
    return "\n".join(lines)


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _row(tenant: str, outcomes: Sequence[Outcome], objective: Objective, seconds: float) -> Row:
    others: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.ended not in ("done", "refused"):
            others[outcome.ended] = others.get(outcome.ended, 0) + 1
    read = [o for o in outcomes if not o.slow]
    return Row(
        tenant,
        len(outcomes),
        sum(o.ended == "done" for o in outcomes),
        sum(o.ended == "refused" for o in outcomes),
        others,
        sum(o.tokens for o in outcomes) / seconds,
        sum(o.tokens for o in outcomes if objective.met(o)) / seconds,
        _percentiles([o.ttft_s * 1000 for o in read if o.ttft_s is not None]),
        _percentiles([o.tpot_s * 1000 for o in read if o.tpot_s is not None]),
        _percentiles([o.answered_s * 1000 for o in outcomes if o.ended == "refused"]),
    )


def _percentiles(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(percentile(values, percent) for percent in _PERCENTILES) if values else ()


def _each(values: tuple[float, ...], digits: int = 0) -> str:
    return " / ".join(f"{value:,.{digits}f}" for value in values) or "–"
