"""Decoding with guesses and without, by turns: python -m benchmarks.speculation MODEL

[--speculation ngram|draft|early-exit] [--draft-model MODEL] [--draft-layers N]
[--tp N] [--pp N] [--dtype TYPE] [--weights TYPE] [--threads N] [--rounds N] [--only TEXT]...

Two replicas in one process answer the same texts, one with the speculation asked for (`ngram`), one with `off`: texts
that repeat their prompt and texts that do not, alone and many at once. A ratio is that of output tokens a second after
the first, the median over rounds in which both ran one after the other. That of processor time is told beside it, as
other programs move it less: with one thread and one rank, nothing of it is spent on waiting. The texts go on past the
model's end of text, so that all are of one length. The share of tokens that are the same in both is told too: in
float32 it is all of them; in bf16 the shape of a step changes how sums are rounded, as other company in the batch does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time
from typing import Annotated

import typer

from benchmarks.speculation_texts import EDIT, ESSAYS, NOTES, QUOTES
from benchmarks.verdict import Verdict, table
from cluster.drafting import draft_of, resolve_draft
from cluster.models import resolve_model
from cluster.text import Tokenizer, load_tokenizer
from partitioning.checkpoint import open_checkpoint
from partitioning.model_spec import DType, WeightType
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.local import LocalReplica, local_replica
from workers.request import EngineConfig, Request, SamplingParams, SpeculationType
from workers.speculation.options import check_options

_MAX_LEN = 2048


@dataclass(frozen=True)
class Text:
    """`prompts` that are answered at once, by `tokens` tokens each."""

    name: str
    prompts: tuple[str, ...]
    tokens: int
    temperature: float
    at_least: float


_TEXTS = (
    Text("code, edited", (EDIT,), 160, 0.0, 1.5),
    Text("code, edited, temperature 0.3", (EDIT,), 160, 0.3, 1.5),
    Text("summary in quotes", (QUOTES,), 160, 0.0, 1.5),
    Text("notes put in order", (NOTES,), 160, 0.0, 1.5),
    Text("essay, temperature 1", ESSAYS[:1], 160, 1.0, 0.95),
    Text("essay, temperature 0.7", ESSAYS[:1], 160, 0.7, 0.95),
    Text("4 essays, temperature 1", ESSAYS[:4], 128, 1.0, 0.95),
    Text("16 essays, temperature 0.7", ESSAYS[:16], 96, 0.7, 0.95),
    Text("64 essays, temperature 0.7", 4 * ESSAYS, 48, 0.7, 0.95),
)


@dataclass(frozen=True)
class _Run:
    """Output tokens after the first, in a second and in a second of this process's processor time, and the tokens of
    every prompt."""

    rate: float
    work_rate: float
    tokens: list[list[int]]


def main(
    model: str,
    speculation: SpeculationType = "ngram",
    draft_model: str | None = None,
    draft_layers: int | None = None,
    tp: int = 1,
    pp: int = 1,
    dtype: DType | None = None,
    weights: WeightType = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Of each rank. Default: its share of the cores.")] = None,
    rounds: int = 5,
    only: Annotated[list[str] | None, typer.Option(help="A text's name; may be given again. Default: all.")] = None,
) -> None:
    check_options(speculation, draft_model, draft_layers)
    path = resolve_model(model)
    draft = None if draft_model is None else str(resolve_draft(draft_model, path))
    tokenizer = load_tokenizer(path)
    with open_checkpoint(path) as checkpoint:
        spec = checkpoint.spec
    settings = plan_settings(
        spec,
        dtype=dtype,
        weights=weights,
        max_model_len=_MAX_LEN,
        kv_cache_tokens=32768,
        draft=draft_of(spec, draft, draft_layers),
    )
    host = local_topology(tp * pp, cores=threads and tp * pp * threads)
    plan = make_plan(spec, str(path), host, settings, tp=tp, pp=pp)
    configs = {
        "off": EngineConfig(max_model_len=_MAX_LEN),
        "guessing": EngineConfig(
            max_model_len=_MAX_LEN,
            speculation=speculation,
            draft_model=draft or "",
            draft_layers=draft_layers or 0,
        ),
    }
    kinds = tuple(configs)
    verdicts = []
    with ExitStack() as stack:
        replicas = {kind: stack.enter_context(local_replica(plan, config)) for kind, config in configs.items()}
        for text in (text for text in _TEXTS if not only or text.name in only):
            for replica in replicas.values():
                _run(replica, tokenizer, text, seed=0)
            before = replicas["guessing"].engine.load()
            ratios, work, same, rates = [], [], [], []
            for seed in range(1, rounds + 1):
                order = kinds if seed % 2 else kinds[::-1]
                runs = {kind: _run(replicas[kind], tokenizer, text, seed) for kind in order}
                off, guessing = (runs[kind] for kind in kinds)
                ratios.append(guessing.rate / off.rate)
                work.append(guessing.work_rate / off.work_rate)
                rates.append((off.rate, guessing.rate))
                same.append(_same(off.tokens, guessing.tokens))
            load = replicas["guessing"].engine.load()
            drafted = load.drafted_tokens - before.drafted_tokens
            accepted = load.accepted_tokens - before.accepted_tokens
            plain, guessed = (median(each) for each in zip(*rates, strict=True))
            print(
                f"{text.name:32} {plain:7.1f} → {guessed:7.1f} tokens/s, {median(ratios):.2f} × "
                f"({min(ratios):.2f} to {max(ratios):.2f}; of processor time {median(work):.2f} ×), "
                f"{accepted:,} of {drafted:,} guesses accepted, {median(same):.0%} of tokens the same",
                flush=True,
            )
            verdicts.append(Verdict(text.name, median(ratios), at_least=text.at_least))
    print(table(verdicts))


def _run(replica: LocalReplica, tokenizer: Tokenizer, text: Text, seed: int) -> _Run:
    prompts = [tokenizer.chat_prompt([{"role": "user", "content": prompt}]) for prompt in text.prompts]
    requests = [
        Request(
            number,
            prompt,
            len(prompt),
            SamplingParams(
                max_tokens=text.tokens, temperature=text.temperature, seed=1000 * seed + number, ignore_eos=True
            ),
        )
        for number, prompt in enumerate(prompts)
    ]
    tokens: list[list[int]] = [[] for _ in prompts]
    first: float | None = None
    for output in replica.generate(requests):
        tokens[output.key] += output.token_ids
        if first is None and all(tokens):
            first, worked, had = perf_counter(), process_time(), sum(map(len, tokens))
    assert first is not None
    count = sum(map(len, tokens)) - had
    return _Run(count / (perf_counter() - first), count / (process_time() - worked), tokens)


def _same(ours: Sequence[list[int]], others: Sequence[list[int]]) -> float:
    """The share of tokens before the first that differs."""
    equal = 0
    for one, other in zip(ours, others, strict=True):
        pairs = enumerate(zip(one, other, strict=True))
        equal += next((number for number, (mine, theirs) in pairs if mine != theirs), len(one))
    return equal / sum(map(len, ours))


if __name__ == "__main__":
    typer.run(main)
