"""What each technique costs in accuracy, and what it gives in speed, memory and money, in one run on this machine.

python -m benchmarks.techniques MODEL --out FOLDER [--only ROW]... [--also NAME=CHECKPOINT]... [--rounds N]
    [--price-per-hour P] [--threads N] [--calibration FILE] [--questions N] [--speeds-anew]

Writes FOLDER/techniques.json, .md and .svg. The rows are in rows.py. What the JSON has is not measured again, so an
interrupted run goes on; `--speeds-anew` keeps the checkpoints and the accuracy alone, `--rounds 0` measures no speed.
Every round measures the machine's limits and then each row once, in a process of its own; figures are medians over
rounds, ratios are taken within one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.techniques import questions
from benchmarks.techniques.checkpoints import Checkpoints
from benchmarks.techniques.options import Also, Only, chosen
from benchmarks.techniques.quality import Qualities
from benchmarks.techniques.report import report
from benchmarks.techniques.results import Results
from benchmarks.techniques.rows import ROWS
from benchmarks.techniques.run import Run
from cluster.models import resolve_model

FILE = "techniques.json"


def main(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a GGUF file or a known name.")],
    out: Annotated[Path, typer.Option(help="The folder for checkpoints, results and pictures.")],
    only: Only = None,
    also: Also = None,
    rounds: Annotated[int, typer.Option(min=0)] = 3,
    price_per_hour: Annotated[float | None, typer.Option(help="Of this machine, for the cost of tokens.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    count: Annotated[
        int, typer.Option("--questions", min=1, help="So many of them, for a quick look.")
    ] = questions.COUNT,
    calibration: Annotated[Path | None, typer.Option(help="Default: text that the model itself writes.")] = None,
    speeds_anew: Annotated[bool, typer.Option("--speeds-anew", help="Measure all speeds again.")] = False,
) -> None:
    path = resolve_model(model)
    rows = chosen(ROWS, only, also)
    out.mkdir(parents=True, exist_ok=True)
    asked = questions.load()[:count]
    try:
        results = Results.load(out / FILE, str(path.resolve()), len(asked))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if speeds_anew:
        results.rounds.clear()
    threads = threads or os.cpu_count() or 1
    run = Run(results, out / FILE, Checkpoints(path, out, calibration), Qualities(path, asked, threads), threads)
    rows = run.qualities(rows)
    for number in range(rounds):
        run.round(number, rows)
    report(results, rows, out, price_per_hour)


if __name__ == "__main__":
    typer.run(main)
