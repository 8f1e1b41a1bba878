"""TTFT, TPOT, throughput, peak memory, and the control plane's share of a step, for one deployment.

python -m benchmarks.serve MODEL|SPEC.yaml [--tp N] [--pp N] [--dtype TYPE] [--weights TYPE] [--kv-cache TYPE]
    [--threads N] [--repeat N] [--json]

Runs one replica on this machine with all its ranks, without Ray and the gateway; benchmarks/gateway.py measures these.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from benchmarks.workload import (
    WARM_UP,
    WORKLOADS,
    Measurement,
    Times,
    Workload,
    measure,
    measure_on_request,
    peak_mib,
    summary,
)
from cluster.models import resolve_model
from cluster.spec import DeploymentSpec
from partitioning.checkpoint import open_checkpoint
from partitioning.model_spec import CacheType, DType, WeightType
from partitioning.plan import Plan
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.local import LocalReplica, local_replica
from workers.request import EngineConfig, Request, SamplingParams

_WIDE = Workload("batch64", 64, 64, 32)  # for the control plane's share, which the peers do not tell
_COMPUTING = ("forward", "wait")  # the other parts of a step are the control plane's


def main(
    target: Annotated[str, typer.Argument(metavar="MODEL|SPEC.yaml")],
    tp: int | None = None,
    pp: int | None = None,
    dtype: DType | None = None,
    weights: Annotated[WeightType | None, typer.Option(help="How matrices are kept; see docs/deployment.md.")] = None,
    kv_cache: Annotated[CacheType | None, typer.Option(help="How keys and values are kept.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each rank. Default: its share of the cores.")] = None,
    repeat: int = 3,
    json: Annotated[bool, typer.Option("--json", help="One JSON line for each measurement.")] = False,
    on_request: Annotated[bool, typer.Option("--on-request", help="For benchmarks/turns.py.")] = False,
) -> None:
    fields = {"tp": tp, "pp": pp, "dtype": dtype, "weights": weights, "kv_cache": kv_cache}
    given = {key: value for key, value in fields.items() if value is not None}
    is_file = target.endswith((".yaml", ".yml"))
    spec = DeploymentSpec.read(Path(target), **given) if is_file else DeploymentSpec.of({"model": target, **given})
    if spec.auto or (spec.replicas or 1) > 1:
        raise typer.BadParameter("one replica of a given layout is measured: leave out auto and replicas")
    plan = _plan(spec, threads)
    config = EngineConfig(
        max_running=spec.max_running, max_batch_tokens=spec.max_batch_tokens, max_model_len=2048, prefix_caching=False
    )
    with local_replica(plan, config) as replica:
        if on_request:
            measure_on_request(partial(generate, replica), plan.model.vocab_size)
            return
        for workload in (*WORKLOADS, _WIDE):
            _one(replica, workload, WARM_UP, plan.model.vocab_size)  # to warm up
            before = replica.engine.timings()
            results = [_one(replica, workload, number, plan.model.vocab_size) for number in range(repeat)]
            after = replica.engine.timings()
            seconds = {part: after[part] - before[part] for part in after}
            share = 1 - sum(seconds[part] for part in _COMPUTING) / sum(seconds.values())
            _report(results, share, json)
        memory = peak_mib()
    print(jsonlib.dumps({"peak_mib": memory}) if json else f"peak memory of all ranks: {memory:,.0f} MiB")


def _plan(spec: DeploymentSpec, threads: int | None) -> Plan:
    path = resolve_model(spec.model)
    with open_checkpoint(path) as checkpoint:
        model = checkpoint.spec
    tp, pp = spec.tp or 1, spec.pp or 1
    settings = plan_settings(
        model,
        dtype=spec.dtype,
        weights=spec.weights,
        kv_cache=spec.kv_cache,
        max_model_len=2048,
        max_batch_tokens=spec.max_batch_tokens,
        kv_block_size=spec.kv_block_size,
        kv_cache_tokens=spec.kv_cache_tokens or 8192,
    )
    # With `threads`, as if the machine had as many cores as the ranks use.
    host = local_topology(tp * pp, cores=threads and tp * pp * threads)
    return make_plan(model, str(path), host, settings, tp=tp, pp=pp, layer_split=spec.layer_split)


def _one(replica: LocalReplica, workload: Workload, repetition: int, vocab_size: int) -> Measurement:
    return measure(workload, generate(replica, workload, workload.token_ids(repetition, vocab_size)))


def generate(replica: LocalReplica, workload: Workload, prompts: Sequence[Sequence[int]]) -> Times:
    sampling = SamplingParams(max_tokens=workload.output_tokens, ignore_eos=True)
    requests = [Request(number, tuple(prompt), len(prompt), sampling) for number, prompt in enumerate(prompts)]
    times: Times = [[] for _ in prompts]
    started = perf_counter()
    for output in replica.generate(requests):
        times[output.key] += [perf_counter() - started] * len(output.token_ids)
    return times


def _report(results: list[Measurement], share: float, json: bool) -> None:
    if json:
        for result in results:
            print(jsonlib.dumps({**asdict(result), "control_share": share}), flush=True)
        return
    print(f"{summary(results)}  control plane {share:.1%}", flush=True)


if __name__ == "__main__":
    typer.run(main)
