"""Phalanx beside its peers, every engine loaded at once, and request after request in turns: what other machines on the
same host do to one they do to all.

python -m benchmarks.turns HF_FOLDER [--vllm PYTHON] [--llama PYTHON --gguf FILE] [--w8a8 FOLDER] [--turns N]
    [--only ENGINE]... [--out benchmarks/results/NAME]

Engines and workloads are those of benchmarks/compare.py, which also measures memory and the control plane. An engine
that is not asked sleeps; half a second before each question is for threads that spin a while before they do. Ratios are
taken within a turn; of rates the median over the turns is printed, and the best of any. What the machine can do
(benchmarks/limits.py) is measured at the beginning of every turn.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, suppress
from statistics import median
from subprocess import Popen
from time import sleep
from typing import Annotated

import typer

from benchmarks.engines import THREADS, Gguf, Llama, Model, Only, Out, Vllm, W8a8, engines, run, start
from benchmarks.measured import Line, Measured, verdicts
from benchmarks.verdict import table
from benchmarks.workload import WARM_UP, WORKLOADS, Workload

_PAUSE_S = 0.5
_LIMITS = {
    "GB/s read": "read_gb_s",
    "GFLOP/s in bf16 products": "bf16_gflop_s",
    "GFLOP/s of float32 in registers": "float32_registers_gflop_s",
    "GOP/s of 8 bits in registers": "int8_registers_gop_s",
}


def main(
    model: Model,
    vllm: Vllm = None,
    llama: Llama = None,
    gguf: Gguf = None,
    w8a8: W8a8 = None,
    turns: Annotated[int, typer.Option(min=1, help="How often each workload is asked of each engine.")] = 10,
    only: Only = None,
    out: Out = None,
) -> None:
    chosen = engines(model, vllm, llama, gguf, w8a8, only)
    with ExitStack() as stack:
        running: dict[str, Popen[str]] = {}
        for name, engine in chosen.items():
            print(f"starting {name}", file=sys.stderr, flush=True)
            running[name] = stack.enter_context(start(engine))
            stack.callback(running[name].terminate)
            for workload in WORKLOADS:
                _ask(running[name], workload, WARM_UP)
        rounds: list[dict[str, list[Line]]] = []
        limits: list[Line] = []
        for turn in range(turns):
            print(f"turn {turn + 1} of {turns}", file=sys.stderr, flush=True)
            limits += run(sys.executable, "-m", "benchmarks.limits", str(THREADS))
            lines: dict[str, list[Line]] = {name: [] for name in running}
            for workload in WORKLOADS:
                for name, process in running.items():
                    sleep(_PAUSE_S)
                    lines[name].append(_ask(process, workload, turn))
            rounds.append(lines)
    measured = Measured(rounds, (), {name: engine.model for name, engine in chosen.items()}, 0, 0)
    text = f"{_rates(measured)}\n\n{_meanwhile(limits)}\n\n{table(verdicts(measured))}\n"
    if out is not None:
        out.with_suffix(".md").write_text(text, encoding="utf-8")
        out.with_suffix(".json").write_text(
            json.dumps({"limits": limits, "turns": rounds}, indent=1) + "\n", encoding="utf-8"
        )
    print(text)


def _ask(process: Popen[str], workload: Workload, repetition: int) -> Line:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # then nothing comes back
        os.write(process.stdin.fileno(), f"{workload.name} {repetition}\n".encode())
    for line in process.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise typer.BadParameter(f"an engine ended with exit code {process.wait()}; what it printed is above")


def _rates(measured: Measured) -> str:
    """Medians over the turns, and the best of any."""
    rows = ["| engine | decode tok/s (best) | prefill tok/s (best) | 32 × (128+64) tok/s (best) |", "|---|---|---|---|"]
    for engine in measured.engines:
        cells = []
        for workload in WORKLOADS:
            each = measured.each(engine, workload.name)
            cells.append(f"{median(each):.1f} ({max(each):.1f})")
        rows.append(f"| {engine} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _meanwhile(limits: list[Line]) -> str:
    """The machine's limits, the median of the turns and the range."""
    parts = []
    for name, key in _LIMITS.items():
        each = [limit[key] for limit in limits]
        parts.append(f"{median(each):.0f} {name} ({min(each):.0f} to {max(each):.0f})")
    return f"The machine meanwhile: {', '.join(parts)}."


if __name__ == "__main__":
    typer.run(main)
