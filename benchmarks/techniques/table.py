"""The two tables: what the techniques cost, and what they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.techniques.intervals import paired_difference, wilson
from benchmarks.techniques.quality import same_continuation
from benchmarks.techniques.results import Results
from benchmarks.techniques.rows import BASELINE, Row

_MISSING = "–"


@dataclass(frozen=True)
class Figures:
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return f"{self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def costs(results: Results, rows: Sequence[Row]) -> Figures:
    columns = ("technique", "perplexity", "against float32", "KL, nats", "same token", "same continuation")
    columns += ("accuracy, %", "difference, points")
    baseline = next(row for row in rows if row.name == BASELINE)
    base, lines = results.qualities[baseline.way], []
    for row in rows:
        own = results.qualities[row.way]
        low, high = (100 * bound for bound in wilson(sum(own.right), len(own.right)))
        difference, half = (100 * value for value in paired_difference(own.right, base.right))
        same = same_continuation(results.continued[row.key], results.continued[baseline.key])
        lines.append(
            (
                row.name,
                f"{own.perplexity:.2f}",
                f"{own.change:+.2%} ± {own.change_error:.2%}",
                f"{own.divergence:.4f}",
                f"{own.same_token:.1%}",
                f"{same:.0%}",
                f"{100 * own.accuracy:.1f} ({low:.1f} to {high:.1f})",
                f"{difference:+.2f} ± {half:.2f}",
            )
        )
    return Figures("What it costs, with 95 % intervals", columns, lines)


def gains(results: Results, rows: Sequence[Row], price_per_hour: float | None) -> Figures:
    """`price_per_hour` of this machine, in any currency."""
    columns: tuple[str, ...] = ("technique", "decode tok/s", "repeating text tok/s", "32 at once tok/s")
    columns += ("TTFT of 1,024 ms", "the same again ms", "weights MB", "peak MiB", "joules a token")
    columns += () if price_per_hour is None else ("a million tokens",)
    base, lines = next(row for row in rows if row.name == BASELINE), []
    for row in rows:
        batch, joules = results.median(row, "batch"), results.median(row, "joules")
        if batch is None:
            continue
        line = [row.name, *(_rate(results, row, base, key) for key in ("decode", "repeats", "batch"))]
        line += [_figure(results.median(row, key), 1000) for key in ("ttft_s", "ttft_again_s")]
        line += [_figure(results.median(row, key), 1) for key in ("weight_mb", "peak_mib")]
        line.append("not reported" if joules is None else f"{joules:.3f}")
        if price_per_hour is not None:
            line.append(f"{price_per_hour / (batch * 3600) * 1e6:.3f}")
        lines.append(tuple(line))
    return Figures(f"What it gives: medians, and × {BASELINE}", columns, lines)


def _rate(results: Results, row: Row, base: Row, key: str) -> str:
    ratio = results.ratio(row, base, key)
    return f"{results.median(row, key):.1f}" + ("" if ratio is None else f" (× {ratio:.1f})")


def _figure(value: float | None, factor: float) -> str:
    return _MISSING if value is None else f"{value * factor:,.0f}"
