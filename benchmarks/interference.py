"""What a long prompt does to streams that run: python -m benchmarks.interference MODEL [--tp N] [--pp N]

Some streams decode undisturbed for a while; then a long prompt arrives. Printed are the time between two tokens of the
streams before and while the prompt is read, and the prompt's own time to its first token.
"""

from __future__ import annotations

import json as jsonlib
import random
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Annotated

import typer

from cluster.models import resolve_model
from partitioning.checkpoint import open_checkpoint
from partitioning.model_spec import DType
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.local import LocalReplica, local_replica
from workers.request import EngineConfig, Request, SamplingParams

_STREAM_PROMPT, _UNDISTURBED = 32, 150
_TARGET = 3.0  # times the undisturbed median


@dataclass(frozen=True)
class Interference:
    """Seconds between two tokens of one stream before and during the prompt, and until the prompt's first token."""

    streams: int
    prompt_tokens: int
    undisturbed_median_s: float
    disturbed_median_s: float
    disturbed_p99_s: float
    ttft_s: float

    @property
    def ratio(self) -> float:
        return self.disturbed_p99_s / self.undisturbed_median_s


def main(
    model: str,
    tp: int = 1,
    pp: int = 1,
    dtype: DType | None = None,
    streams: int = 4,
    prompt_tokens: int = 7900,
    max_stretch: float = EngineConfig.max_stretch,
    repeat: int = 3,
    json: Annotated[bool, typer.Option("--json", help="One JSON line for each measurement.")] = False,
) -> None:
    path = resolve_model(model)
    with open_checkpoint(path) as checkpoint:
        spec = checkpoint.spec
    settings = plan_settings(spec, dtype=dtype, max_model_len=8192, kv_cache_tokens=8192 * (streams + 1))
    plan = make_plan(spec, str(path), local_topology(tp * pp), settings, tp=tp, pp=pp)
    config = EngineConfig(max_model_len=8192, prefix_caching=False, max_stretch=max_stretch)
    with local_replica(plan, config) as replica:
        for repetition in range(repeat):
            rng = random.Random(repetition)
            drawn = [[rng.randrange(100, spec.vocab_size) for _ in range(_STREAM_PROMPT)] for _ in range(streams)]
            long = [rng.randrange(100, spec.vocab_size) for _ in range(prompt_tokens)]
            result = _measure(replica, drawn, long, repetition * (streams + 1))
            print(jsonlib.dumps({**asdict(result), "ratio": result.ratio}) if json else _line(result), flush=True)


def _measure(replica: LocalReplica, streams: list[list[int]], prompt: list[int], first_key: int) -> Interference:
    """Keys from `first_key` on must be new: what was cancelled before may still have news to tell."""
    sampling = SamplingParams(max_tokens=8192 - _STREAM_PROMPT, ignore_eos=True)
    keys = range(first_key, first_key + len(streams))
    requests = [Request(key, tokens, len(tokens), sampling) for key, tokens in zip(keys, streams, strict=True)]
    once = SamplingParams(max_tokens=1, ignore_eos=True)
    long = Request(keys.stop, prompt, len(prompt), once)
    times: dict[int, list[float]] = {key: [] for key in keys}
    arrived = answered = 0.0
    for output in replica.generate(requests):
        now = perf_counter()
        if output.key == long.key:
            answered = now
            break
        if output.key in times:
            times[output.key].append(now)
        if not arrived and min(map(len, times.values())) > _UNDISTURBED:
            arrived = perf_counter()
            replica.engine.submit(long)
    gaps = [pair for own in times.values() for pair in pairwise(own)]
    before = [end - start for start, end in gaps if end < arrived]
    during = sorted(end - start for start, end in gaps if end > arrived and start < answered)
    return Interference(
        streams=len(streams),
        prompt_tokens=len(prompt),
        undisturbed_median_s=median(before),
        disturbed_median_s=median(during),
        disturbed_p99_s=during[int(0.99 * (len(during) - 1))],
        ttft_s=answered - arrived,
    )


def _line(result: Interference) -> str:
    verdict = "met" if result.ratio <= _TARGET else "missed"
    return (
        f"{result.streams} streams: TPOT median {result.undisturbed_median_s * 1e3:.1f} ms undisturbed; while "
        f"{result.prompt_tokens} tokens are read {result.disturbed_median_s * 1e3:.1f} ms, p99 "
        f"{result.disturbed_p99_s * 1e3:.1f} ms = {result.ratio:.2f} x ({verdict}: {_TARGET:.0f} x); "
        f"TTFT of the prompt {result.ttft_s:.2f} s"
    )


if __name__ == "__main__":
    typer.run(main)
