"""Phalanx beside its peers on this machine, in turns: figures, and whether the targets are met.

python -m benchmarks.compare HF_FOLDER [--vllm PYTHON] [--llama PYTHON --gguf FILE] [--rounds N] [--repeat N]
    [--w8a8 FOLDER] [--only ENGINE]... [--out benchmarks/results/NAME]

HF_FOLDER comes from benchmarks/export_hf.py, the Pythons from benchmarks/peers/install_*.py; FILE is written again in
the types that are compared, into HF_FOLDER-gguf; --w8a8 is what `phalanx compress --recipe w8a8` made. Every round
measures the machine's limits and runs every engine once, each alone, so that a busy spell of the machine meets all of
them; the tables have medians over the rounds, and ratios are taken within a round. Engines whose threads wait for one
another by spinning lose most where others use the cores: the figures of a busy machine say nothing, and how busy it was
is printed with them.
"""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import typer

from benchmarks.engines import THREADS, Gguf, Llama, Model, Only, Out, Vllm, W8a8, engines, run
from benchmarks.measured import Line, Measured, figures, verdicts
from benchmarks.verdict import table

_INTERPRETER = """
import json, workers.local
from benchmarks.workload import peak_mib
print(json.dumps({"peak_mib": peak_mib()}))
"""


def main(
    model: Model,
    vllm: Vllm = None,
    llama: Llama = None,
    gguf: Gguf = None,
    w8a8: W8a8 = None,
    rounds: int = 3,
    repeat: int = 3,
    only: Only = None,
    out: Out = None,
) -> None:
    chosen = engines(model, vllm, llama, gguf, w8a8, only)
    (interpreter,) = run(sys.executable, "-c", _INTERPRETER)
    limits: list[Line] = []
    results: list[dict[str, list[Line]]] = []
    others: list[float] = []
    text = ""
    for number in range(rounds):
        limits += run(sys.executable, "-m", "benchmarks.limits", str(THREADS))
        lines: dict[str, list[Line]] = {}
        for name, engine in list(chosen.items()):
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            others.append(_cores_in_use())
            try:
                lines[name] = run(*engine.command, "--repeat", str(repeat))
            except subprocess.CalledProcessError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                del chosen[name]
                for before in results:
                    del before[name]
        results.append(lines)
        models = {name: engine.model for name, engine in chosen.items()}
        measured = Measured(results, limits, models, interpreter["peak_mib"], max(others))
        text = f"{figures(measured)}\n\n{table(verdicts(measured))}\n"
        if out is not None:  # after every round, as the next one may be interrupted
            raw = {
                "limits": limits,
                "rounds": results,
                "interpreter_mib": measured.interpreter_mib,
                "others_cores": others,
            }
            out.with_suffix(".md").write_text(text, encoding="utf-8")
            out.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    print(text)


def _cores_in_use() -> float:
    """By whatever else runs on this machine, over a second in which nothing of ours does."""
    return psutil.cpu_percent(interval=1.0) / 100 * (psutil.cpu_count() or 1)


if __name__ == "__main__":
    typer.run(main)
