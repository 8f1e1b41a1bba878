"""Decoding at a long context with keys and values in the float type and in 8 bits, by turns.

python -m benchmarks.long_context MODEL [--tp N] [--dtype TYPE] [--weights TYPE] [--context N] [--sequences N]
    [--rounds N]

Prompts of `context` random tokens, one a sequence, are read once; in every round each cache decodes a few more tokens
after all of them, the prompts being found in it again, so that a round is not longer than the machine stays the same.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import get_args

import typer

from cluster.models import resolve_model
from partitioning.checkpoint import open_checkpoint
from partitioning.costs import Slice, cache_bytes, kv_token_bytes
from partitioning.model_spec import CacheType, DType, ModelSpec, WeightType
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.local import LocalReplica, local_replica
from workers.request import EngineConfig, Request, SamplingParams

_NEW = 17


def main(
    model: str,
    tp: int = 1,
    dtype: DType | None = None,
    weights: WeightType = "auto",
    context: int = 4000,
    sequences: int = 8,
    rounds: int = 9,
) -> None:
    path = resolve_model(model)
    with open_checkpoint(path) as checkpoint:
        spec = checkpoint.spec
    rng = random.Random(0)
    prompts = [[rng.randrange(100, spec.vocab_size) for _ in range(context)] for _ in range(sequences)]
    kinds: tuple[CacheType, ...] = get_args(CacheType)
    steps: dict[CacheType, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        replicas = {}
        for kind in kinds:
            length = context + _NEW
            settings = plan_settings(
                spec,
                dtype=dtype,
                weights=weights,
                kv_cache=kind,
                max_model_len=length,
                kv_cache_tokens=sequences * (length + 32),
            )
            plan = make_plan(spec, str(path), local_topology(tp), settings, tp=tp, pp=1)
            replicas[kind] = stack.enter_context(local_replica(plan, EngineConfig(max_model_len=length)))
            list(replicas[kind].generate(_requests(prompts)))
            print(f"KV cache {kind}: {token_bytes(spec, settings.dtype, kind):,} bytes a token", flush=True)
        for _ in range(rounds):
            for kind, replica in replicas.items():
                steps[kind].append(step_seconds(replica, prompts))
    for kind in kinds:
        print(f"KV cache {kind}: {median(steps[kind]) * 1e3:.1f} ms a step of {sequences} at {context} tokens")
    ratios = [plain / eight for plain, eight in zip(steps["auto"], steps["int8"], strict=True)]
    print(f"int8 is {median(ratios):.2f} × as fast, {min(ratios):.2f} to {max(ratios):.2f}")


def token_bytes(spec: ModelSpec, dtype: DType, kind: CacheType) -> int:
    return kv_token_bytes(spec, cache_bytes(dtype, kind), Slice.whole(spec))


def step_seconds(replica: LocalReplica, prompts: list[list[int]]) -> float:
    """The median time between two tokens of one prompt that the cache has, while all of them decode."""
    times = [perf_counter() for output in replica.generate(_requests(prompts)) if output.key == 0]
    return median(later - earlier for earlier, later in pairwise(times))


def _requests(prompts: list[list[int]]) -> list[Request]:
    sampling = SamplingParams(max_tokens=_NEW, ignore_eos=True)
    return [Request(number, prompt, len(prompt), sampling) for number, prompt in enumerate(prompts)]


if __name__ == "__main__":
    typer.run(main)
