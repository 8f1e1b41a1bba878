"""Time to first token of a request whose beginning an earlier one had, as a share of the earlier one's.

python -m benchmarks.prefix MODEL [--tp N] [--dtype TYPE] [--weights TYPE] [--repeat N]

Both prompts are 1,024 random tokens that they share and 16 of their own; every repetition has new ones.
"""

from __future__ import annotations

import random
from statistics import median
from time import perf_counter

import typer

from benchmarks.verdict import Verdict
from cluster.models import resolve_model
from partitioning.checkpoint import open_checkpoint
from partitioning.model_spec import DType, WeightType
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.local import LocalReplica, local_replica
from workers.request import EngineConfig, Request, SamplingParams

_SHARED, _OWN = 1024, 16
_TARGET = 0.05


def main(model: str, tp: int = 1, dtype: DType | None = None, weights: WeightType = "auto", repeat: int = 5) -> None:
    path = resolve_model(model)
    with open_checkpoint(path) as checkpoint:
        spec = checkpoint.spec
    settings = plan_settings(spec, dtype=dtype, weights=weights, max_model_len=2048, kv_cache_tokens=16384)
    plan = make_plan(spec, str(path), local_topology(tp), settings, tp=tp, pp=1)
    rng = random.Random(0)
    shares = []
    with local_replica(plan, EngineConfig(max_model_len=2048)) as replica:
        for number in range(repeat + 1):
            shared, *own = ([rng.randrange(100, spec.vocab_size) for _ in range(n)] for n in (_SHARED, _OWN, _OWN))
            first, second = (_ttft(replica, shared + end) for end in own)
            if number:  # the first of all warms up
                shares.append(second / first)
                print(f"TTFT {first * 1000:8.1f} ms, then {second * 1000:8.1f} ms: {shares[-1]:.1%}", flush=True)
    print(Verdict(f"TTFT after a shared prefix of {_SHARED} tokens", median(shares), at_most=_TARGET, unit="%"))


def _ttft(replica: LocalReplica, prompt: list[int]) -> float:
    started = perf_counter()
    for _ in replica.generate([Request(0, prompt, len(prompt), SamplingParams(max_tokens=1, ignore_eos=True))]):
        pass
    return perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
