"""Tokens a second by how many sequences run at once, beside transformers in float32: where a technique's gain bends.

python -m benchmarks.crowd MODEL [--only ROW]... [--also NAME=FOLDER]... [--rounds N] [--out benchmarks/results/NAME]

Rows are those of benchmarks/techniques that read the model as it is; all are loaded at once, in one process, and take
turns within a round: every sequence has a prompt of 128 random tokens and draws 64 more at temperature 1. Of tokens a
second (64 × sequences over the time until the last has its last token) the median over the rounds is printed, and of
ratios to transformers, which are taken within a round.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from time import sleep
from typing import Annotated

import typer

from benchmarks.techniques.engine import generate, plan_of, replica_of
from benchmarks.techniques.options import Also, Only, chosen
from benchmarks.techniques.peer import Transformers
from benchmarks.techniques.rows import AS_IT_IS, BASELINE, ROWS
from benchmarks.techniques.speed import Generate
from benchmarks.workload import WARM_UP, Workload

_CROWDS = (1, 2, 4, 8, 16, 32)
_PROMPT, _OUTPUT = 128, 64
_PAUSE_S = 0.1  # for threads that look for work before they sleep

Rates = dict[str, dict[int, list[float]]]  # by row and sequences, of every round


def main(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder.", exists=True)],
    only: Only = None,
    also: Also = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    out: Annotated[Path | None, typer.Option(help="Where to write tables (.md) and figures (.json).")] = None,
) -> None:
    threads = os.cpu_count() or 1
    rows = chosen([row for row in ROWS if row.checkpoint == AS_IT_IS and not row.within_budget], only, also)
    with ExitStack() as stack:
        peer = Transformers(model, threads)
        engines: dict[str, Generate] = {BASELINE: peer.generate}
        for row in rows:
            if row.name == BASELINE:
                continue
            path = model if row.checkpoint == AS_IT_IS else Path(row.checkpoint)
            plan = plan_of(row, path, threads, _PROMPT + _OUTPUT, max(_CROWDS) * (_PROMPT + _OUTPUT + 16))
            engines[row.name] = partial(generate, stack.enter_context(replica_of(row, plan, _PROMPT + _OUTPUT)))
        rates = _measured(engines, peer.vocab_size, rounds)
    text = _table(rates)
    if out is not None:
        out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
        out.with_suffix(".json").write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")
    print(text)


def _measured(engines: dict[str, Generate], vocab: int, rounds: int) -> Rates:
    rates: Rates = {name: {count: [] for count in _CROWDS} for name in engines}
    for number in (WARM_UP, *range(rounds)):
        for count in _CROWDS if number != WARM_UP else (1,):
            crowd = Workload("crowd", count, _PROMPT, _OUTPUT)
            for name, run in engines.items():
                print(f"round {number + 1} of {rounds}: {count} at once, {name}", file=sys.stderr, flush=True)
                sleep(_PAUSE_S)
                _, times = run(crowd.token_ids(number, vocab), _OUTPUT, 1.0)
                if number != WARM_UP:
                    rates[name][count].append(count * _OUTPUT / max(own[-1] for own in times))
    return rates


def _table(rates: Rates) -> str:
    lines = [f"| at once | {' | '.join(rates)} |", f"|---|{'---|' * len(rates)}"]
    for count in _CROWDS:
        base = rates[BASELINE][count]
        cells = []
        for name, own in rates.items():
            ratio = median(rate / other for rate, other in zip(own[count], base, strict=True))
            cells.append(f"{median(own[count]):.1f}" + ("" if name == BASELINE else f" ({ratio:.1f} ×)"))
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
