"""How quickly checkpoints decode one stream, by turns in one process, and how large they are.

python -m benchmarks.decode CHECKPOINT... [--rounds 5]

Each is loaded once, with activations in bfloat16 and its weights as they are; a round continues the same prompt of 128
tokens by 128 with each of them in turn. Medians over the rounds, of tokens a second after the first.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import typer

from cluster.models import resolve_model
from partitioning.checkpoint import open_checkpoint
from partitioning.plan import Plan
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.local import LocalReplica, local_replica
from workers.request import EngineConfig, Request, SamplingParams

_PROMPT, _NEW = 128, 128
_LENGTH = 512


def main(
    checkpoints: Annotated[list[str], typer.Argument(help="Folders, GGUF files or known names.")],
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 5,
) -> None:
    paths = [resolve_model(name) for name in checkpoints]
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(local_replica(_plan(path), EngineConfig(max_model_len=_LENGTH))) for path in paths
        ]
        speeds = [[_speed(replica) for replica in replicas] for _ in range(rounds + 1)][1:]
    print("| checkpoint | MB on disk | decode, tok/s |\n|---|---|---|")
    for path, own in zip(paths, zip(*speeds, strict=True), strict=True):
        print(f"| {path.name} | {_size(path) / 1e6:.1f} | {median(own):.0f} ({min(own):.0f} to {max(own):.0f}) |")


def _plan(path: Path) -> Plan:
    with open_checkpoint(path) as checkpoint:
        spec = checkpoint.spec
    settings = plan_settings(spec, dtype="bfloat16", max_model_len=_LENGTH, kv_cache_tokens=_LENGTH)
    return make_plan(spec, str(path), local_topology(1), settings, tp=1, pp=1)


def _speed(replica: LocalReplica) -> float:
    sampling = SamplingParams(max_tokens=_NEW, ignore_eos=True)
    first = last = 0.0
    for output in replica.generate([Request(0, list(range(100, 100 + _PROMPT)), _PROMPT, sampling)]):
        if output.token_ids:
            last = perf_counter()
            first = first or last
    return (_NEW - 1) / (last - first)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))


if __name__ == "__main__":
    typer.run(main)
