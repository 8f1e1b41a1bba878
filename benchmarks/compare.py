"""Phalanx beside its peers on this machine, in turns, as a table.

python -m benchmarks.compare HF_FOLDER [--vllm PYTHON] [--rounds N] [--out benchmarks/results/NAME]

HF_FOLDER comes from benchmarks/export_hf.py, PYTHON from benchmarks/peers/install_vllm.py. Every round runs every
engine once, each alone, so that a busy spell of the machine meets all of them; the table has medians over all rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

_ROOT = Path(__file__).resolve().parent.parent
_BASE = "transformers"

Rows = dict[str, dict[str, list[dict[str, Any]]]]  # engine -> workload -> measurements


def main(
    model: Annotated[Path, typer.Argument(metavar="HF_FOLDER")],
    vllm: Annotated[Path | None, typer.Option(help="The Python of vLLM's environment.")] = None,
    rounds: int = 2,
    repeat: int = 3,
    out: Annotated[Path | None, typer.Option(help="Where to write NAME.json and NAME.md.")] = None,
) -> None:
    engines = {
        "Phalanx tp=1": [sys.executable, "-m", "benchmarks.serve", str(model), "--json"],
        "Phalanx tp=2": [sys.executable, "-m", "benchmarks.serve", str(model), "--tp", "2", "--json"],
        "Phalanx pp=2": [sys.executable, "-m", "benchmarks.serve", str(model), "--pp", "2", "--json"],
        _BASE: [sys.executable, "-m", "benchmarks.peers.transformers_cpu", "--model", str(model)],
    }
    if vllm is not None:
        engines["vLLM"] = [str(vllm), "-m", "benchmarks.peers.vllm_cpu", "--model", str(model)]
    rows: Rows = {name: defaultdict(list) for name in engines}
    limits = []
    for number in range(rounds):
        limits += _run([sys.executable, "-m", "benchmarks.limits"])
        for name, command in engines.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            for line in _run([*command, "--repeat", str(repeat)]):
                rows[name][line.get("workload", "memory")].append(line)
    table = _table(rows, limits)
    print(table)
    if out is not None:
        out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
        out.with_suffix(".json").write_text(json.dumps({"limits": limits, "engines": rows}, indent=1) + "\n")


def _run(command: list[str]) -> list[dict[str, Any]]:
    env = {**os.environ, **_preload(Path(command[0]))}
    result = subprocess.run(command, cwd=_ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def _preload(python: Path) -> dict[str, str]:
    """vLLM's own advice for CPUs: Intel's OpenMP, which its environment has."""
    libraries = sorted(python.parent.parent.glob("lib/libiomp5.so"))
    return {"LD_PRELOAD": str(libraries[0])} if libraries else {}


def _table(rows: Rows, limits: list[dict[str, Any]]) -> str:
    lines = [
        "| engine | decode tok/s | TPOT ms | prefill tok/s | TTFT of 1024 ms | 32 × (128+64) tok/s | control plane "
        "(decode / batch) | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, measured in rows.items():
        decode, prefill, batch = (measured[kind] for kind in ("decode", "prefill", "batch"))
        shares = [f"{_median(kind, 'control_share'):.1%}" for kind in (decode, batch) if "control_share" in kind[0]]
        lines.append(
            f"| {name} | {_rate(rows, name, 'decode')} | {_median(decode, 'tpot_s') * 1000:.1f} | "
            f"{_rate(rows, name, 'prefill')} | {_median(prefill, 'ttft_s') * 1000:.0f} | "
            f"{_rate(rows, name, 'batch')} | {' / '.join(shares) or '–'} | "
            f"{_median(measured['memory'], 'peak_mib'):,.0f} |"
        )
    read, gemm = _median(limits, "read_gb_s"), _median(limits, "bf16_gflop_s")
    lines.append(f"\nThe machine meanwhile: {read:.0f} GB/s read, {gemm:.0f} GFLOP/s in a bf16 matrix product.")
    return "\n".join(lines)


def _rate(rows: Rows, name: str, workload: str) -> str:
    """Tokens a second, and how often that is the base's."""
    own, base = (_median(rows[engine][workload], "tokens_per_s") for engine in (name, _BASE))
    return f"{own:.1f} (×{own / base:.2f})"


def _median(measurements: list[dict[str, Any]], key: str) -> float:
    return median(entry[key] for entry in measurements)


if __name__ == "__main__":
    typer.run(main)
