"""What drawing tokens costs on CPUs, natively and in torch, by turns: python -m benchmarks.sampling MODEL

[--dtype TYPE] [--weights TYPE] [--rows 1,8,64] [--rounds N]

Sequences of the model's own draws stand at a position; in every turn of a round, one way computes their next token some
times over. "Alone" is what comes after the logits, "step" all of it; where the best score is all that is needed, the
native stage leaves next to nothing to come after. Of each turn the least counts, as other programs' work only adds to
it; medians over the rounds, in milliseconds, and ratios to the greedy step of the same round.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter, sleep
from typing import Annotated

import numpy as np
import torch
import typer

from cluster.models import resolve_model
from partitioning.checkpoint import open_checkpoint
from partitioning.model_spec import DType, WeightType
from partitioning.plan import Plan
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.collectives import SoloGroup
from workers.model.stage import Stage
from workers.request import EngineConfig, SamplingParams
from workers.runner import make_stage
from workers.sampling import Sampler
from workers.sampling.drawing import Drawing
from workers.sampling.torch_drawing import TorchDrawing
from workers.step_plan import ADMISSION, Kind, StepPlan, admission

_CPU = torch.device("cpu")
_LENGTH, _BLOCK = 32, 16
_TIMES = 8
_REST_S = 0.6  # after which no thread of torch's looks for work, nor does the native team mind the crowd
_KINDS = {
    "greedy": SamplingParams(),
    "temperature 1": SamplingParams(temperature=1.0),
    "0.7, top_p 0.95": SamplingParams(temperature=0.7, top_p=0.95),
    "1, top_p 0.95": SamplingParams(temperature=1.0, top_p=0.95),
    "1, top_k 50": SamplingParams(temperature=1.0, top_k=50),
}


class _Way:
    """A kind of draw, and in what it is computed."""

    def __init__(self, plan: Plan, stage: Stage, drawing: Drawing, sampling: SamplingParams, rows: int) -> None:
        self._stage, self._fused = stage, drawing is stage.drawing
        self._sampler = Sampler(rows, plan.ranks[0].vocab, SoloGroup(), _CPU, drawing)
        self._admissions = np.array(
            [admission(slot, 1, SamplingParams(**{**vars(sampling), "seed": slot})) for slot in range(rows)],
            dtype=ADMISSION,
        )

    @torch.inference_mode()
    def run(self, tokens: list[int], position: int) -> tuple[list[int], float, float]:
        """The tokens drawn after these, one of each sequence, and the seconds of the draws alone and of all."""
        rows = len(tokens)
        slots, blocks = np.arange(rows, dtype=np.int32), -(-_LENGTH // _BLOCK)
        plan = StepPlan(
            kind=Kind.RUN,
            step=1,
            admissions=self._admissions,
            rows=np.stack([slots, np.full_like(slots, position), np.ones_like(slots), np.ones_like(slots)], axis=1),
            block_updates=np.array([(s, i, s * blocks + i) for s in slots for i in range(blocks)], dtype=np.int32),
            tokens=np.array(tokens, dtype=np.int32),
        )
        self._sampler.apply(plan)
        started = perf_counter()
        where = plan.samples()
        draws = self._sampler.draws(*where) if self._fused else None
        result = self._stage.run(plan, None, draws)
        forwarded = perf_counter()
        if result.best is not None:
            sampled = self._sampler.choose(*result.best)
        else:
            assert result.logits is not None
            sampled = self._sampler.sample(result.logits, *where).result()
        ended = perf_counter()
        return sampled.tokens, ended - forwarded, ended - started


def main(
    model: str,
    dtype: DType = "bfloat16",
    weights: WeightType = "auto",
    rows: Annotated[str, typer.Option(help="Sequences at once.")] = "1,8,64",
    rounds: Annotated[int, typer.Option(min=1)] = 9,
) -> None:
    path = resolve_model(model)
    most = max(int(count) for count in rows.split(","))
    with open_checkpoint(path) as checkpoint:
        settings = plan_settings(
            checkpoint.spec, dtype=dtype, weights=weights, max_model_len=_LENGTH, kv_cache_tokens=most * _LENGTH
        )
        plan = make_plan(checkpoint.spec, str(path), local_topology(1), settings, tp=1, pp=1)
        torch.set_num_threads(plan.ranks[0].threads)
        config = EngineConfig(max_running=most, max_model_len=_LENGTH)
        stage = make_stage(plan, 0, config, checkpoint, SoloGroup(), _CPU, True)
    in_torch = TorchDrawing(plan.ranks[0].vocab, plan.model.vocab_size, SoloGroup(), _CPU)
    print("| sequences | draw | torch: alone | step | of greedy | native: alone | step | of greedy |")
    print("|---|---|---|---|---|---|---|---|")
    for count in map(int, rows.split(",")):
        ways = {
            (kind, drawing): _Way(plan, stage, drawing, sampling, count)
            for kind, sampling in _KINDS.items()
            for drawing in (in_torch, stage.drawing)
        }
        tokens = list(range(1000, 1000 + count))
        for position in range(_LENGTH - 1):
            tokens, *_ = ways["0.7, top_p 0.95", stage.drawing].run(tokens, position)
        took: dict[tuple[str, Drawing], list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, own in took.items():
                own.append(_turn(ways[way], tokens))
        greedy = [step for _, step in took["greedy", stage.drawing]]
        for kind in _KINDS:
            cells = []
            for drawing in (in_torch, stage.drawing):
                alone, steps = zip(*took[kind, drawing], strict=True)
                ratio = median(step / plain for step, plain in zip(steps, greedy, strict=True))
                cells += [f"{median(alone) * 1e3:.3f}", f"{median(steps) * 1e3:.2f}", f"{ratio:.2f} ×"]
            print(f"| {count} | {kind} | {' | '.join(cells)} |", flush=True)


def _turn(way: _Way, tokens: list[int]) -> tuple[float, float]:
    sleep(_REST_S)
    alone, steps = zip(*(way.run(tokens, _LENGTH - 1)[1:] for _ in range(_TIMES)), strict=True)
    return min(alone), min(steps)


if __name__ == "__main__":
    typer.run(main)
