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
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks import measured as names
from benchmarks.measured import Line, Measured, figures, verdicts
from benchmarks.verdict import table

_ROOT = Path(__file__).resolve().parent.parent
_THREADS = 2
_INTERPRETER = """
import json, workers.local
from benchmarks.workload import peak_mib
print(json.dumps({"peak_mib": peak_mib()}))
"""


@dataclass(frozen=True)
class Engine:
    """`command` prints one JSON line for each measurement; it runs in the environment of its Python."""

    model: Path
    command: tuple[str, ...]


def main(
    model: Annotated[Path, typer.Argument(metavar="HF_FOLDER")],
    vllm: Annotated[Path | None, typer.Option(help="The Python of vLLM's environment.")] = None,
    llama: Annotated[Path | None, typer.Option(help="The Python of llama.cpp's environment.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="The same weights as a GGUF file, for llama.cpp.")] = None,
    w8a8: Annotated[Path | None, typer.Option(help="The same model as a W8A8 checkpoint.")] = None,
    rounds: int = 3,
    repeat: int = 3,
    only: Annotated[list[str] | None, typer.Option(help="Run these engines alone; may be given again.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write NAME.json and NAME.md.")] = None,
) -> None:
    if (llama is None) != (gguf is None):
        raise typer.BadParameter("--llama and --gguf go together")
    engines = _engines(model, vllm)
    if llama is not None and gguf is not None:
        engines |= _gguf_engines(llama, gguf, model.with_name(f"{model.name}-gguf"))
    if w8a8 is not None:
        engines[names.OWN_W8A8] = _own(w8a8, weights="int8")
        engines[names.OWN_W8A8_CACHE8] = _own(w8a8, weights="int8", kv_cache="int8")
    if unknown := set(only or ()) - set(engines):
        raise typer.BadParameter(f"no engine {', '.join(sorted(unknown))}; there are {', '.join(engines)}")
    engines = {name: engine for name, engine in engines.items() if not only or name in only}
    (interpreter,) = _run(sys.executable, "-c", _INTERPRETER)
    limits: list[Line] = []
    results: list[dict[str, list[Line]]] = []
    others: list[float] = []
    text = ""
    for number in range(rounds):
        limits += _run(sys.executable, "-m", "benchmarks.limits", str(_THREADS))
        lines: dict[str, list[Line]] = {}
        for name, engine in list(engines.items()):
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            others.append(_cores_in_use())
            try:
                lines[name] = _run(*engine.command, "--repeat", str(repeat))
            except subprocess.CalledProcessError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                del engines[name]
                for before in results:
                    del before[name]
        results.append(lines)
        models = {name: engine.model for name, engine in engines.items()}
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


def _engines(model: Path, vllm: Path | None) -> dict[str, Engine]:
    engines = {
        names.OWN: _own(model),
        names.TP2: _own(model, "--tp", "2", "--threads", "1"),
        names.PP2: _own(model, "--pp", "2", "--threads", "1"),
        names.TRANSFORMERS: _peer(Path(sys.executable), "transformers_cpu", model),
    }
    if vllm is not None:
        engines[names.VLLM] = _peer(vllm, "vllm_cpu", model)
    return engines


def _gguf_engines(llama: Path, gguf: Path, folder: Path) -> dict[str, Engine]:
    """Writes the files of `folder` that are missing."""
    _run(str(llama), "-m", "benchmarks.peers.requantise", str(gguf.resolve()), str(folder))
    bf16, int8, four_bits = (folder / f"{kind}.gguf" for kind in ("bf16", "q8_0", "q4_1"))
    return {
        names.LLAMA: _peer(llama, "llama_cpp", bf16),
        names.OWN_INT8: _own(int8),
        names.LLAMA_INT8: _peer(llama, "llama_cpp", int8),
        names.OWN_4BIT: _own(four_bits),
        names.LLAMA_4BIT: _peer(llama, "llama_cpp", four_bits),
    }


def _own(model: Path, *layout: str, weights: str = "auto", kv_cache: str = "auto") -> Engine:
    options = ("--weights", weights, "--kv-cache", kv_cache, *(layout or ("--threads", str(_THREADS))))
    return Engine(model, (sys.executable, "-m", "benchmarks.serve", str(model), "--json", *options))


def _peer(python: Path, module: str, model: Path) -> Engine:
    threads = ("--threads", str(_THREADS))
    return Engine(model, (str(python), "-m", f"benchmarks.peers.{module}", "--model", str(model), *threads))


def _cores_in_use() -> float:
    """By whatever else runs on this machine, over a second in which nothing of ours does."""
    return psutil.cpu_percent(interval=1.0) / 100 * (psutil.cpu_count() or 1)


def _run(*command: str) -> list[Line]:
    env = {**os.environ, **_preload(Path(command[0]))}
    result = subprocess.run(command, cwd=_ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def _preload(python: Path) -> dict[str, str]:
    """vLLM's own advice for CPUs: Intel's OpenMP, which its environment has, and tcmalloc, where the system has it."""
    openmp = sorted(python.parent.parent.glob("lib/libiomp5.so"))
    if not openmp:
        return {}
    malloc = sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))
    return {"LD_PRELOAD": ":".join(map(str, [*malloc[:1], *openmp[:1]]))}


if __name__ == "__main__":
    typer.run(main)
