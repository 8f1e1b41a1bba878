"""CPU time of the control plane for one step, by running and by waiting sequences: python -m benchmarks.control_plane

The engine, scheduler, KV blocks and StepPlans are the real ones; the model is replaced by one that answers at once, so
that what is left is what a step costs besides computing: schedule, pack, send, commit, publish, hand over.
"""

from __future__ import annotations

import json as jsonlib
import threading
from dataclasses import asdict, dataclass
from statistics import median
from time import thread_time
from types import SimpleNamespace
from typing import Annotated, Any, cast

import torch
import typer

from partitioning.plan import Plan
from workers.engine import Engine
from workers.parallel import ParallelContext
from workers.progress import Progress
from workers.request import EngineConfig, Output, Request, SamplingParams
from workers.sampling import Sampled
from workers.step_plan import StepPlan

_PROMPT, _WARM_UP = 128, 200
_CASES = ((1, 0), (4, 0), (16, 0), (64, 0), (64, 10), (64, 100), (64, 1000), (64, 10_000))


@dataclass(frozen=True)
class Cost:
    """Median microseconds of CPU time a step, over `steps` steps that each decode one token of `running` sequences."""

    running: int
    waiting: int
    steps: int
    cpu_us: float


class _Instant:
    """Answers every step at once and notes the engine's CPU time between its steps."""

    looks_ahead = False

    def __init__(self, steps: int) -> None:
        self.seconds = {"forward": 0.0, "sample": 0.0}
        self.between: list[float] = []
        self.done = threading.Event()
        self._steps, self._left = steps, 0.0
        self._tokens = [7] * 1024
        self._none = torch.empty(0, 1)

    def run(self, plan: StepPlan) -> Sampled:
        entered = thread_time()
        if len(plan.tokens) == len(plan.rows):  # nothing but decodes
            self.between.append(entered - self._left)
            if len(self.between) == self._steps + _WARM_UP:
                self.done.set()
        sampled = Sampled(self._tokens[: int(plan.rows[:, 3].sum())], self._none)
        self._left = thread_time()
        return sampled


def main(
    steps: int = 1000,
    tenants: Annotated[int, typer.Option(min=1, help="Who share the replica.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="One JSON line for each measurement.")] = False,
) -> None:
    base = None
    for running, waiting in _CASES:
        cost = _measure(running, waiting, steps, tenants)
        if waiting == 10:
            base = cost.cpu_us
        flat = f"  {cost.cpu_us / base:5.2f} x of 10 waiting" if base else ""
        line = f"{running:3} running {waiting:6} waiting  {cost.cpu_us:7.1f} us a step{flat}"
        print(jsonlib.dumps(asdict(cost)) if json else line, flush=True)


def _measure(running: int, waiting: int, steps: int, tenants: int) -> Cost:
    length = _PROMPT + steps + 2 * _WARM_UP
    config = EngineConfig(
        max_running=running, max_waiting=waiting + running, max_waiting_tokens=1 << 40, max_model_len=length + 1
    )
    shape = SimpleNamespace(
        pp=1, kv_block_size=16, kv_blocks=running * (length // 16 + 2), model=SimpleNamespace(vocab_size=1 << 16)
    )
    sent = SimpleNamespace(progress=Progress(), send_plan=lambda words: None)
    runner = _Instant(steps)
    engine = Engine(cast(Plan, shape), config, cast(Any, runner), cast(ParallelContext, sent))
    sampling = SamplingParams(max_tokens=length - _PROMPT, ignore_eos=True)
    for key in range(running + waiting):
        prompt = [key % 1000 + 1] * _PROMPT
        engine.submit(Request(key, prompt, _PROMPT, sampling, tenant=str(key % tenants)))
    loop = threading.Thread(target=engine.run, args=(_ignore,), daemon=True)
    loop.start()
    if not runner.done.wait(timeout=300):
        raise SystemExit("the engine did not finish its steps in 300 s")
    engine.stop()
    loop.join()
    return Cost(running, waiting, steps, median(runner.between[_WARM_UP : _WARM_UP + steps]) * 1e6)


def _ignore(outputs: list[Output]) -> None:
    pass


if __name__ == "__main__":
    typer.run(main)
