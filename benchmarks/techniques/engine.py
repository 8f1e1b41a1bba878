"""A row's engine: one replica on this machine, without Ray and the gateway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from benchmarks.techniques.rows import Row
from benchmarks.workload import Times
from partitioning.checkpoint import open_checkpoint
from partitioning.plan import Plan
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.local import LocalReplica, local_replica
from workers.request import EngineConfig, Request, SamplingParams


def plan_of(row: Row, path: Path, threads: int, max_len: int, cache_tokens: int) -> Plan:
    """The machine as if it had `threads` cores, shared by the row's ranks."""
    with open_checkpoint(path) as checkpoint:
        spec = checkpoint.spec
    settings = plan_settings(
        spec,
        dtype=row.dtype,
        weights=row.weights,
        kv_cache=row.kv_cache,
        max_model_len=max_len,
        kv_cache_tokens=cache_tokens,
    )
    host = local_topology(row.tp, cores=max(threads, row.tp))
    return make_plan(spec, str(path), host, settings, tp=row.tp, pp=1)


@contextmanager
def replica_of(row: Row, plan: Plan, max_len: int) -> Iterator[LocalReplica]:
    config = EngineConfig(max_model_len=max_len, prefix_caching=row.prefix_cache, speculation=row.speculation)
    with local_replica(plan, config) as replica:
        yield replica


def generate(
    replica: LocalReplica, prompts: Sequence[Sequence[int]], tokens: int, temperature: float = 0.0
) -> tuple[list[list[int]], Times]:
    """All at once, past the end of a text."""
    requests = [
        Request(
            number,
            prompt,
            len(prompt),
            SamplingParams(max_tokens=tokens, temperature=temperature, seed=number, ignore_eos=True),
        )
        for number, prompt in enumerate(prompts)
    ]
    made: list[list[int]] = [[] for _ in prompts]
    times: Times = [[] for _ in prompts]
    started = perf_counter()
    for output in replica.generate(requests):
        made[output.key] += output.token_ids
        times[output.key] += [perf_counter() - started] * len(output.token_ids)
    return made, times
