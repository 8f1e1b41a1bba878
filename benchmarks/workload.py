"""What every engine is asked to do, and what is counted. Needs Python alone: peers run in other environments."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

Times = list[list[float]]  # for each sequence, when each of its tokens came, in seconds since all were submitted


@dataclass(frozen=True)
class Workload:
    """`prompts` sequences at once, each of `prompt_tokens` random tokens that are continued greedily by
    `output_tokens`, whatever these are."""

    name: str
    prompts: int
    prompt_tokens: int
    output_tokens: int

    def token_ids(self, repetition: int, vocab_size: int) -> list[list[int]]:
        """Different in every repetition, so that no cache helps, and the same for every engine."""
        rng = random.Random(f"{self.name} {repetition}")
        return [[rng.randrange(100, vocab_size) for _ in range(self.prompt_tokens)] for _ in range(self.prompts)]


WORKLOADS = (Workload("decode", 1, 128, 128), Workload("prefill", 1, 1024, 1), Workload("batch", 32, 128, 64))
WARM_UP = -1  # a repetition that is not counted


@dataclass(frozen=True)
class Measurement:
    """TTFT and TPOT in seconds, medians over the sequences; throughput of output (of prompts, for prefill) tokens."""

    workload: str
    ttft_s: float
    tpot_s: float | None
    tokens_per_s: float


def measure(workload: Workload, times: Times) -> Measurement:
    assert len(times) == workload.prompts
    assert all(len(own) == workload.output_tokens for own in times)
    ttft = median(own[0] for own in times)
    if workload.output_tokens == 1:
        return Measurement(workload.name, ttft, None, workload.prompts * workload.prompt_tokens / ttft)
    tpot = median((own[-1] - own[0]) / (len(own) - 1) for own in times)
    if workload.prompts == 1:
        return Measurement(workload.name, ttft, tpot, 1 / tpot)
    seconds = max(own[-1] for own in times)
    return Measurement(workload.name, ttft, tpot, workload.prompts * workload.output_tokens / seconds)


def summary(results: Sequence[Measurement]) -> str:
    """One line: the medians over the repetitions of a workload."""
    ttft = median(result.ttft_s for result in results) * 1000
    tpots = [result.tpot_s * 1000 for result in results if result.tpot_s is not None]
    tpot = f"TPOT {median(tpots):7.1f} ms" if tpots else " " * 15
    rate = median(result.tokens_per_s for result in results)
    return f"{results[0].workload:8} TTFT {ttft:8.1f} ms  {tpot}  {rate:8.1f} tokens/s"


Generate = Callable[[Workload, Sequence[Sequence[int]]], Times]


def run_all(generate: Generate, vocab_size: int, arguments: argparse.Namespace) -> None:
    """Prints one JSON line for each measurement, and one with the peak memory."""
    if arguments.on_request:
        measure_on_request(generate, vocab_size)
        return
    for workload in WORKLOADS:
        for repetition in (WARM_UP, *range(arguments.repeat)):
            times = generate(workload, workload.token_ids(repetition, vocab_size))
            if repetition != WARM_UP:
                print(json.dumps(asdict(measure(workload, times))), flush=True)
    print(json.dumps({"peak_mib": peak_mib()}), flush=True)


def measure_on_request(generate: Generate, vocab_size: int) -> None:
    """For every line "NAME REPETITION" that comes, one JSON line: that workload's measurement."""
    by_name = {workload.name: workload for workload in WORKLOADS}
    for line in sys.stdin:
        name, repetition = line.split()
        workload = by_name[name]
        times = generate(workload, workload.token_ids(int(repetition), vocab_size))
        print(json.dumps(asdict(measure(workload, times))), flush=True)


def peak_mib() -> float:
    """Most resident memory that this process and those it started ever had, as a sum of each one's peak (Linux)."""
    pids, kib = [str(Path("/proc/self").resolve().name)], 0
    while pids:
        pid = pids.pop()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        kib += next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += (task / "children").read_text().split()
    return kib / 1024


def peer_arguments(what: str, dtypes: Sequence[str] = ()) -> argparse.Namespace:
    """`dtypes` are what the engine can compute in, the first of them unless another is asked for."""
    parser = argparse.ArgumentParser(description=what)
    if dtypes:
        parser.add_argument("--dtype", choices=dtypes, default=dtypes[0])
    parser.add_argument("--model", required=True, help="a Hugging Face folder, or a GGUF file for llama.cpp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--on-request", action="store_true", help="measure what each line of the input asks for")
    return parser.parse_args()
