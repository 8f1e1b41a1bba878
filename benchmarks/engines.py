"""The engines that are compared, and how each is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import measured as names
from benchmarks.measured import Line

# The options that say which.
Model = Annotated[Path, typer.Argument(metavar="HF_FOLDER")]
Vllm = Annotated[Path | None, typer.Option(help="The Python of vLLM's environment.")]
Llama = Annotated[Path | None, typer.Option(help="The Python of llama.cpp's environment.")]
Gguf = Annotated[Path | None, typer.Option(help="The same weights as a GGUF file, for llama.cpp.")]
W8a8 = Annotated[Path | None, typer.Option(help="The same model as a W8A8 checkpoint.")]
Only = Annotated[list[str] | None, typer.Option(help="Run these engines alone; may be given again.")]
Out = Annotated[Path | None, typer.Option(help="Where to write NAME.json and NAME.md.")]

_ROOT = Path(__file__).resolve().parent.parent
THREADS = 2


@dataclass(frozen=True)
class Engine:
    """`command` prints one JSON line for each measurement; it runs in the environment of its Python."""

    model: Path
    command: tuple[str, ...]


def engines(
    model: Path,
    vllm: Path | None,
    llama: Path | None,
    gguf: Path | None,
    w8a8: Path | None,
    only: Sequence[str] | None,
) -> dict[str, Engine]:
    """By name, those asked for. Raises typer.BadParameter for options that do not go together, or names of none."""
    if (llama is None) != (gguf is None):
        raise typer.BadParameter("--llama and --gguf go together")
    found = _engines(model, vllm)
    if llama is not None and gguf is not None:
        found |= _gguf_engines(llama, gguf, model.with_name(f"{model.name}-gguf"))
    if w8a8 is not None:
        found[names.OWN_W8A8] = _own(w8a8, weights="int8")
        found[names.OWN_W8A8_CACHE8] = _own(w8a8, weights="int8", kv_cache="int8")
    if unknown := set(only or ()) - set(found):
        raise typer.BadParameter(f"no engine {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    return {name: engine for name, engine in found.items() if not only or name in only}


def run(*command: str) -> list[Line]:
    """The JSON lines that a command prints."""
    result = subprocess.run(
        command, cwd=_ROOT, env=_environment(command), stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def start(engine: Engine) -> subprocess.Popen[str]:
    """An engine that measures a workload when a line asks it to: see `benchmarks.workload.measure_on_request`."""
    command = (*engine.command, "--on-request")
    return subprocess.Popen(
        command, cwd=_ROOT, env=_environment(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _environment(command: Sequence[str]) -> dict[str, str]:
    return {**os.environ, **_preload(Path(command[0]))}


def _engines(model: Path, vllm: Path | None) -> dict[str, Engine]:
    engines = {
        names.OWN: _own(model),
        names.TP2: _own(model, "--tp", "2", "--threads", "1"),
        names.PP2: _own(model, "--pp", "2", "--threads", "1"),
        names.TRANSFORMERS: _peer(Path(sys.executable), "transformers_cpu", model),
    }
    if vllm is not None:
        engines[names.VLLM] = _peer(vllm, "vllm_cpu", model)
        engines[names.VLLM_FLOAT32] = _peer(vllm, "vllm_cpu", model, "--dtype", "float32")
    return engines


def _gguf_engines(llama: Path, gguf: Path, folder: Path) -> dict[str, Engine]:
    """Writes the files of `folder` that are missing."""
    run(str(llama), "-m", "benchmarks.peers.requantise", str(gguf.resolve()), str(folder))
    bf16, int8, four_bits = (folder / f"{kind}.gguf" for kind in ("bf16", "q8_0", "q4_1"))
    return {
        names.LLAMA: _peer(llama, "llama_cpp", bf16),
        names.OWN_INT8: _own(int8),
        names.LLAMA_INT8: _peer(llama, "llama_cpp", int8),
        names.OWN_4BIT: _own(four_bits),
        names.LLAMA_4BIT: _peer(llama, "llama_cpp", four_bits),
    }


def _own(model: Path, *layout: str, weights: str = "auto", kv_cache: str = "auto") -> Engine:
    options = ("--weights", weights, "--kv-cache", kv_cache, *(layout or ("--threads", str(THREADS))))
    return Engine(model, (sys.executable, "-m", "benchmarks.serve", str(model), "--json", *options))


def _peer(python: Path, module: str, model: Path, *options: str) -> Engine:
    threads = ("--threads", str(THREADS))
    return Engine(model, (str(python), "-m", f"benchmarks.peers.{module}", "--model", str(model), *threads, *options))


def _preload(python: Path) -> dict[str, str]:
    """vLLM's own advice for CPUs: Intel's OpenMP, which its environment has, and tcmalloc, where the system has it."""
    openmp = sorted(python.parent.parent.glob("lib/libiomp5.so"))
    if not openmp:
        return {}
    malloc = sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))
    return {"LD_PRELOAD": ":".join(map(str, [*malloc[:1], *openmp[:1]]))}
