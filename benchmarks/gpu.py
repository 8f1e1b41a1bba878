"""One GPU and a model of random weights: decoding as a share of the memory's bandwidth, prompts as a share of the
matrix units' rate, and crowds; beside transformers, eager and compiled.

python -m benchmarks.gpu [--shape llama-3-8b] [--kept bf16|int8|int4|w8a8|fp8] [--transformers] [--out FILE]

Needs neither Ray nor a model. The limits are measured in every round: the best of several ways each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer

from benchmarks.random_model import BITS, SHAPES, Kept, RandomCheckpoint, spec_of
from benchmarks.serve import generate
from benchmarks.work import prefill_operations, read_bytes
from benchmarks.workload import WARM_UP, Generate, Measurement, Workload, measure
from partitioning.devices import parse_topology
from partitioning.model_spec import CacheType, ModelSpec
from partitioning.plan import Plan
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.engine import Engine
from workers.local import LocalReplica
from workers.parallel import ParallelContext, open_store
from workers.request import EngineConfig
from workers.runner import Runner

_CONFIG = EngineConfig(max_running=256, max_batch_tokens=4096, max_model_len=8192, prefix_caching=False)
_HOST, _TIMEOUT_S = "127.0.0.1", 300.0
_REPEAT = 10


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "llama-3-8b",
    kept: Annotated[Kept, typer.Option(help="How the layers' matrices are kept.")] = "bf16",
    kv_cache: Annotated[CacheType, typer.Option(help="How keys and values are kept.")] = "auto",
    sheet: Annotated[str, typer.Option(help="The GPU, by a name of `phalanx plan --devices`; or cpu.")] = "H200",
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt that is read.")] = 4096,
    crowds: Annotated[str, typer.Option(help="How many sequences at once, such as 64,256.")] = "64,256",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    transformers: Annotated[bool, typer.Option("--transformers", help="Beside it, in the same rounds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the figures go as JSON.")] = None,
) -> None:
    workloads = [
        Workload("decode", 1, 128, 128),
        Workload("prefill", 1, prompt, 1),
        *(Workload(f"batch{number}", int(number), 128, 64) for number in crowds.split(",")),
    ]
    spec = spec_of(shape, kept)
    device = torch.device("cpu" if sheet == "cpu" else "cuda:0")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found: list[dict[str, Any]] = []
    with _phalanx(_plan(spec, sheet, kv_cache), kept, device) as phalanx:
        engines: dict[str, Generate] = {"Phalanx": phalanx}
        if transformers:
            engines |= _transformers(shape, device)
        for number in range(WARM_UP, rounds):
            limits = _limits(device)
            for engine, run in engines.items():
                results = [_measured(run, workload, number, spec) for workload in workloads]
                if number == WARM_UP:
                    continue
                shares = _shares(results, spec, kept, prompt, limits)
                line = {"round": number, "engine": engine, "limits": limits, **shares}
                found.append(line | {result.workload: asdict(result) for result in results})
                print(json.dumps(line), flush=True)
    report = {"date": str(date.today()), "device": name, "torch": torch.__version__, "shape": shape, "kept": kept}
    report |= {"kv_cache": kv_cache, "rounds": found}
    for engine in engines:
        print(_summary(engine, [line for line in found if line["engine"] == engine], workloads))
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _plan(spec: ModelSpec, sheet: str, kv_cache: CacheType) -> Plan:
    topology = local_topology(1) if sheet == "cpu" else parse_topology(sheet)
    settings = plan_settings(
        spec,
        dtype="bfloat16",
        kv_cache=kv_cache,
        max_model_len=_CONFIG.max_model_len,
        max_batch_tokens=_CONFIG.max_batch_tokens,
        kv_cache_tokens=_CONFIG.max_running * 256,
    )
    return make_plan(spec, spec.name, topology, settings, tp=1, pp=1)


@contextmanager
def _phalanx(plan: Plan, kept: Kept, device: torch.device) -> Iterator[Generate]:
    store = open_store(_HOST, _TIMEOUT_S)
    context = ParallelContext(plan, 0, store, "random weights need no secret", _HOST, device, _TIMEOUT_S)
    runner = Runner(plan, 0, _CONFIG, RandomCheckpoint(plan.model, kept), context, device)
    replica = LocalReplica(Engine(plan, _CONFIG, runner, context), ())
    try:
        yield lambda workload, prompts: generate(replica, workload, prompts)
    finally:
        replica.stop()
        context.close()


def _transformers(shape: str, device: torch.device) -> dict[str, Generate]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks.peers.transformers_cpu import generating

    fields = dict(SHAPES[shape])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    found = {"transformers": generating(model)}
    if device.type == "cuda":  # decode steps are then compiled, and replayed as graphs
        found["transformers, compiled"] = generating(model, cache_implementation="static")
    return found


def _measured(run: Generate, workload: Workload, repetition: int, spec: ModelSpec) -> Measurement:
    return measure(workload, run(workload, workload.token_ids(repetition, spec.vocab_size)))


def _shares(
    results: Sequence[Measurement], spec: ModelSpec, kept: Kept, prompt: int, limits: dict[str, float]
) -> dict[str, float]:
    """Of the bandwidth, in decoding one sequence: all layers and the head are read for a token; of the matrix units'
    rate in bfloat16, in reading the prompt."""
    decode, prefill, *_ = results
    read = read_bytes(spec, BITS[kept] / 8, 2)
    return {
        "read_share": decode.tokens_per_s * read / 1e9 / limits["read_gb_s"],
        "product_share": prefill_operations(spec, prompt) / prefill.ttft_s / 1e12 / limits["bf16_tflop_s"],
    }


def _limits(device: torch.device) -> dict[str, float]:
    """The best of several ways each, and each way the median of some repetitions."""
    large = device.type == "cuda"
    block = torch.ones((1 << 30) if large else (1 << 24), dtype=torch.bfloat16, device=device)
    other = torch.empty_like(block)
    rows = block.view(-1, 8192)
    reads = {
        "sum": block.nbytes / _seconds(lambda: block.view(torch.int32).sum(), device),
        "product with a vector": block.nbytes / _seconds(lambda: torch.mv(rows, rows[0]), device),
        "copy": 2 * block.nbytes / _seconds(lambda: other.copy_(block), device),
    }
    products = []
    for size in (4096, 8192) if large else (512,):
        x = torch.randn(size, size, dtype=torch.bfloat16, device=device)
        products.append(2 * size**3 / _seconds(lambda x=x: x @ x.t(), device))  # type: ignore[misc]
    return {"read_gb_s": max(reads.values()) / 1e9, "bf16_tflop_s": max(products) / 1e12}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_REPEAT):
        _wait(device)
        started = perf_counter()
        run()
        _wait(device)
        times.append(perf_counter() - started)
    return median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _summary(engine: str, lines: Sequence[dict[str, Any]], workloads: Sequence[Workload]) -> str:
    def middle(pick: Callable[[dict[str, Any]], float]) -> float:
        return median(pick(line) for line in lines)

    rates = [f"{w.name} {middle(lambda line, w=w: line[w.name]['tokens_per_s']):,.0f}" for w in workloads]  # type: ignore[misc]
    shares = f"{middle(lambda line: line['read_share']):.0%} of the bandwidth in decode, "
    shares += f"{middle(lambda line: line['product_share']):.0%} of the bf16 rate in prefill"
    return f"{engine}: tokens a second: {', '.join(rates)}; {shares}"


if __name__ == "__main__":
    typer.run(main)
