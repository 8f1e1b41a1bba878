"""Writes what was measured: tables to the terminal and to a file, and a picture."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from rich.console import Console

from benchmarks.techniques.intervals import wilson
from benchmarks.techniques.plot import Dot, svg
from benchmarks.techniques.results import Results
from benchmarks.techniques.rows import Row
from benchmarks.techniques.table import costs, gains

_IDLE_CORES = 0.2


def report(results: Results, rows: list[Row], out: Path, price_per_hour: float | None) -> None:
    tables = [costs(results, rows)]
    notes = []
    if results.rounds:
        tables.append(gains(results, rows, price_per_hour))
        read, product = (median(one.limits[key] for one in results.rounds) for key in ("read_gb_s", "bf16_gflop_s"))
        others = max(most for one in results.rounds for most in one.others.values())
        notes.append(
            f"Rounds: {len(results.rounds)}. The machine meanwhile: {read:.1f} GB/s read, {product:.0f} GFLOP/s in "
            f"bf16 products. Other programs used up to {others:.1f} cores."
        )
        if others > _IDLE_CORES:
            notes.append("The machine was not idle: repeat this with --speeds-anew before quoting its speeds.")
        (out / "techniques.svg").write_text(svg(_dots(results, rows)), encoding="utf-8")
    console = Console(width=max(160, Console().width))
    for table in tables:
        console.print(table.rich())
    for note in notes:
        console.print(note)
    text = "\n\n".join([*(table.markdown() for table in tables), *notes]) + "\n"
    (out / "techniques.md").write_text(text, encoding="utf-8")


def _dots(results: Results, rows: list[Row]) -> list[Dot]:
    dots = []
    for row in rows:
        decode, weights = results.median(row, "decode"), results.median(row, "weight_mb")
        if decode is not None and weights is not None:
            own = results.qualities[row.way]
            low, high = wilson(sum(own.right), len(own.right))
            dots.append(Dot(row.name, decode, 100 * own.accuracy, 100 * low, 100 * high, weights))
    return dots
