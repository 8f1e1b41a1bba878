"""How often a draft would be right, and what it costs: python -m benchmarks.draft_acceptance MODEL

[--layers 6,12,18,24] [--draft-model MODEL]... [--dtype TYPE] [--weights TYPE] [--threads N] [--tokens N]

The model answers texts, greedily and at temperature 0.7. Then each early exit (--layers) and each draft model reads the
same answers and draws after every token of them with the same noise: the share of equal draws is that of right guesses,
whatever the machine's load. A pass and a step are each a token of one sequence; their seconds are of processor time,
the median of many, so other programs move them less than seconds on a clock. The gain is what the best number of
guesses brings at these figures, in tokens a second over plain decoding, with right guesses as independent events: what
`workers.speculation.depth` decides by, which makes none where it is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import process_time
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.speculation_texts import EDIT, ESSAYS, NOTES, QUOTES
from cluster.drafting import draft_of, resolve_draft
from cluster.models import resolve_model
from cluster.text import load_tokenizer
from partitioning.checkpoint import open_checkpoint
from partitioning.draft import draft_plan
from partitioning.model_spec import DType, WeightType
from partitioning.plan import Plan, Span
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.collectives import SoloGroup
from workers.model.stage import Stage
from workers.request import EngineConfig, SamplingParams
from workers.runner import make_stage
from workers.sampling import Sampler
from workers.speculation.acceptance import MOST
from workers.speculation.depth import guesses_worth
from workers.step_plan import ADMISSION, Kind, StepPlan, admission

_MAX_LEN = 2048
_CPU = torch.device("cpu")
_TIMES = 60
_ROWS = 5  # of a step with guesses, to tell what a row costs


class _Reader:
    """A model that draws tokens of one sequence, in slot 0."""

    def __init__(self, plan: Plan, stage: Stage, layers: int | None, sampling: SamplingParams) -> None:
        self._stage, self._layers, self._sampling = stage, layers, sampling
        vocab = plan.model.vocab_size
        self._sampler = Sampler(1, Span(0, vocab), SoloGroup(), _CPU, stage.drawing)
        self._updates = np.array([(0, index, index) for index in range(plan.kv_blocks)], dtype=np.int32)

    @torch.inference_mode()
    def draw(self, tokens: Sequence[int], start: int, drawn: int) -> list[int]:
        """What it draws after each of the last `drawn` of `tokens`, which begin at position `start`."""
        plan = StepPlan(
            kind=Kind.RUN,
            step=1,
            admissions=np.array([admission(0, start + 1, self._sampling)], dtype=ADMISSION),
            rows=np.array([(0, start, len(tokens), drawn)], dtype=np.int32),
            block_updates=self._updates,
            tokens=np.array(tokens, dtype=np.int32),
        )
        self._sampler.apply(plan)
        slots, positions = plan.samples()
        result = self._stage.run(plan, None, draws=None, layers=self._layers)
        assert result.logits is not None
        return self._sampler.sample(result.logits, slots, positions).result().tokens if drawn else []

    def seconds(self, position: int, rows: int) -> float:
        """Of processor time, for so many tokens at once."""
        took = []
        for _ in range(_TIMES):
            before = process_time()
            self.draw([5] * rows, position, rows)
            took.append(process_time() - before)
        return median(took)


def main(
    model: str,
    layers: Annotated[str, typer.Option(help="Early exits, such as 6,12.")] = "3,6,12,18,24,27",
    draft_model: Annotated[list[str] | None, typer.Option(help="May be given again.")] = None,
    dtype: DType = "bfloat16",
    weights: WeightType = "dense",
    threads: int = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 160,
) -> None:
    torch.set_num_threads(threads)
    path = resolve_model(model)
    tokenizer = load_tokenizer(path)
    host = local_topology(1, cores=threads)
    config = EngineConfig(max_running=1, max_model_len=_MAX_LEN)
    with open_checkpoint(path) as checkpoint:
        spec = checkpoint.spec
        settings = plan_settings(spec, dtype=dtype, weights=weights, max_model_len=_MAX_LEN, kv_cache_tokens=_MAX_LEN)
        plan = make_plan(spec, str(path), host, settings, tp=1, pp=1)
        stage = make_stage(plan, 0, config, checkpoint, SoloGroup(), _CPU, all_native=True)
    drafts: dict[str, tuple[Plan, Stage, int | None]] = {
        f"{exit_} of {spec.num_layers} layers": (plan, stage, int(exit_)) for exit_ in layers.split(",") if exit_
    }
    for name in draft_model or []:
        small = resolve_draft(name, path)
        draft = draft_of(spec, str(small), None)
        assert draft is not None
        own = draft_plan(plan, draft.model, str(small))
        with open_checkpoint(small) as checkpoint:
            drafts[name] = own, make_stage(own, 0, config, checkpoint, SoloGroup(), _CPU, True, beside=stage), None
    kinds = {"greedy": SamplingParams(), "temperature 0.7": SamplingParams(temperature=0.7, seed=1)}
    texts = {"code": EDIT, "quotes": QUOTES, "notes": NOTES, "essay": ESSAYS[0], "another essay": ESSAYS[1]}
    shares: dict[str, list[float]] = {name: [] for name in drafts}
    print(f"{'right guesses, %':28}" + "".join(f"{name:>20}" for name in drafts))
    for kind, sampling in kinds.items():
        for title, text in texts.items():
            prompt = tokenizer.chat_prompt([{"role": "user", "content": text}])
            answer = _answer(_Reader(plan, stage, None, sampling), prompt, tokens)
            line = f"{title + ', ' + kind:28}"
            for name, (own, its, exit_) in drafts.items():
                reader = _Reader(own, its, exit_, sampling)
                _read(reader, prompt[:-1])
                drawn = reader.draw([prompt[-1], *answer[:-1]], len(prompt) - 1, len(answer))
                shares[name].append(sum(map(int.__eq__, drawn, answer)) / len(answer))
                line += f"{shares[name][-1]:20.0%}"
            print(line, flush=True)
    whole = _Reader(plan, stage, None, SamplingParams())
    step_s = whole.seconds(200, 1)
    row_s = max(0.0, whole.seconds(200, _ROWS) - step_s) / (_ROWS - 1)
    print(f"a step {step_s * 1e3:.2f} ms, a row more {row_s * 1e3:.2f} ms (processor time)")
    for name, (own, its, exit_) in drafts.items():
        pass_s = _Reader(own, its, exit_, SamplingParams()).seconds(200, 1)
        mean = sum(shares[name]) / len(shares[name])
        best = guesses_worth([mean], [MOST], MOST, step_s, row_s, pass_s)[0]
        gained = sum(mean**depth for depth in range(best + 1)) * step_s / (step_s + best * (pass_s + row_s))
        print(
            f"{name}: {mean:.0%} right, a pass {pass_s * 1e3:.2f} ms ({pass_s / step_s:.0%} of a step), "
            f"best with {best} guesses: {gained:.2f} ×"
        )


def _answer(reader: _Reader, prompt: Sequence[int], count: int) -> list[int]:
    _read(reader, prompt[:-1])
    known = list(prompt)
    for _ in range(count):
        known += reader.draw(known[-1:], len(known) - 1, 1)
    return known[len(prompt) :]


def _read(reader: _Reader, tokens: Sequence[int], piece: int = 256) -> None:
    for start in range(0, len(tokens), piece):
        reader.draw(tokens[start : start + piece], start, 0)


if __name__ == "__main__":
    typer.run(main)
