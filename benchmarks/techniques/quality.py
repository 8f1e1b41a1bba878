"""What a row costs in accuracy, against transformers in float32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import exp
from pathlib import Path

import torch

from benchmarks.accuracy import NEW, PROMPT, WINDOW, Reading, agreed, read, stage_of, text_windows
from benchmarks.techniques.engine import generate, plan_of, replica_of
from benchmarks.techniques.intervals import mean_with_error
from benchmarks.techniques.peer import Transformers
from benchmarks.techniques.questions import Question
from benchmarks.techniques.rows import Row
from benchmarks.techniques.scoring import MAX_SEQUENCES, chosen, logprobs_of, sheet
from cluster.text import load_tokenizer


@dataclass(frozen=True)
class Quality:
    """Of one way to compute: `change` of the perplexity as a part of it, with half its 95 % interval; `divergence` in
    nats a token; `same_token`: how often the likeliest next token is the baseline's; `right`: which questions."""

    perplexity: float
    change: float
    change_error: float
    divergence: float
    same_token: float
    right: list[bool]

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)


class Qualities:
    """Measures on `questions` and on the text of benchmarks/accuracy.py, which no recipe calibrates on."""

    def __init__(self, model: Path, questions: list[Question], threads: int) -> None:
        self._model, self._questions, self._threads = model, questions, threads
        self._windows = text_windows(load_tokenizer(model))
        self._sequences = max(MAX_SEQUENCES, len(self._windows))

    def of(self, row: Row, path: Path) -> Quality:
        """Of the row's weights and cache, in one process."""
        asked = sheet(self._questions, load_tokenizer(path))
        if row.engine == "transformers":
            return self._quality(self._base, chosen(asked, self._peer.logprobs(asked)))
        alone = replace(row, tp=1)  # whose logits are those of the whole vocabulary
        plan = plan_of(alone, path, self._threads, WINDOW, self._sequences * WINDOW)
        stage = stage_of(plan, self._sequences)
        with torch.inference_mode():
            return self._quality(read(stage, self._windows), chosen(asked, logprobs_of(stage, asked)))

    def continued(self, row: Row, path: Path) -> list[list[int]]:
        """What the row's engine, with all its options, makes of the beginnings of the text's windows, greedily."""
        prompts = self._windows[:, :PROMPT].tolist()
        if row.engine == "transformers":
            return self._peer.generate(prompts, NEW)[0]
        plan = plan_of(row, path, self._threads, WINDOW, self._sequences * WINDOW)
        with replica_of(row, plan, WINDOW) as replica:
            if row.prefix_cache:  # what comes again is what the cache changes
                generate(replica, prompts, NEW)
            return generate(replica, prompts, NEW)[0]

    @cached_property
    def _peer(self) -> Transformers:
        return Transformers(self._model, self._threads)

    @cached_property
    def _base(self) -> Reading:
        return self._peer.reading(self._windows)

    def _quality(self, own: Reading, answers: list[int]) -> Quality:
        # Token by token, as what is hard for one is hard for the other.
        more, error = mean_with_error((self._losses(own) - self._losses(self._base)).tolist())
        return Quality(
            perplexity=exp(own.loss),
            change=exp(own.loss - self._base.loss) - 1,
            change_error=exp(more) * error,
            divergence=own.divergence(self._base),
            same_token=float((own.likeliest == self._base.likeliest).double().mean()),
            right=[answer == question.answer for answer, question in zip(answers, self._questions, strict=True)],
        )

    def _losses(self, reading: Reading) -> torch.Tensor:
        """Of every token, in nats."""
        targets = torch.from_numpy(self._windows.T[1:]).long()
        rows = zip(reading.logprobs, targets, strict=True)
        return -torch.cat([logprobs.gather(1, own[:, None])[:, 0] for logprobs, own in rows]).double()


def same_continuation(own: list[list[int]], base: list[list[int]]) -> float:
    """The share of tokens before the first that differs."""
    return sum(map(agreed, own, base)) / sum(map(len, base))
