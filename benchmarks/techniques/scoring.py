"""Which answers a model chooses: of every question the word that is likeliest after its definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.techniques.questions import Question
from cluster.text import Tokenizer
from workers.model.stage import Stage
from workers.step_plan import ADMISSION, Kind, StepPlan

MAX_TOKENS = 512  # of a step
MAX_SEQUENCES = 32
MAX_LENGTH = 256  # of a question with an answer
BLOCK = 16


@dataclass
class Asked:
    """What a model reads once, and the words, (question, choice, tokens), whose likelihood is asked at its end. All but
    a word's last token are part of what is read."""

    tokens: tuple[int, ...]
    words: list[tuple[int, int, list[int]]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """After how many of the last tokens the model is asked for the next."""
        return max(len(word) for _, _, word in self.words)


def sheet(questions: Sequence[Question], tokenizer: Tokenizer) -> list[Asked]:
    """Words of one token share what is read: the question. Shortest first, so that what a step pads is little."""
    asked: dict[tuple[int, ...], Asked] = {}
    for number, question in enumerate(questions):
        prompt = tokenizer.encode(question.prompt)
        for choice, text in enumerate(question.choices):
            word = tokenizer.encode(f" {text}", add_special=False)
            tokens = (*prompt, *word[:-1])
            asked.setdefault(tokens, Asked(tokens)).words.append((number, choice, word))
    return sorted(asked.values(), key=lambda one: len(one.tokens))


def chosen(asked: Sequence[Asked], logprobs: Iterable[Tensor]) -> list[int]:
    """The place of the likeliest word of each question. `logprobs`: for each of `asked` [samples, vocabulary], its last
    token's last."""
    scores: dict[int, dict[int, float]] = {}
    for one, rows in zip(asked, logprobs, strict=True):
        for question, choice, word in one.words:
            own = rows[len(rows) - len(word) :][torch.arange(len(word)), torch.tensor(word)]
            scores.setdefault(question, {})[choice] = float(own.double().sum())
    return [max(scores[question].items(), key=lambda item: item[1])[0] for question in sorted(scores)]


def logprobs_of(stage: Stage, asked: Sequence[Asked]) -> Iterator[Tensor]:
    """By a stage that is a whole model and has room for MAX_SEQUENCES sequences of MAX_LENGTH tokens."""
    for step in _steps(asked):
        logits = stage.run(step, None, None).logits  # [samples, vocabulary]
        assert logits is not None
        yield from torch.split(logits.log_softmax(dim=1), step.rows[:, 3].tolist())


def batches(asked: Sequence[Asked]) -> Iterator[Sequence[Asked]]:
    """As many at a time as fit a step."""
    start = tokens = 0
    for number, one in enumerate(asked):
        if number - start == MAX_SEQUENCES or tokens + len(one.tokens) > MAX_TOKENS:
            yield asked[start:number]
            start, tokens = number, 0
        tokens += len(one.tokens)
    yield asked[start:]


def _steps(asked: Sequence[Asked]) -> Iterator[StepPlan]:
    """Every sequence is read from its first token on, in the blocks of a slot."""
    each = MAX_LENGTH // BLOCK
    table = [(slot, block, slot * each + block) for slot in range(MAX_SEQUENCES) for block in range(each)]
    for number, batch in enumerate(batches(asked)):
        rows = [(slot, 0, len(one.tokens), one.samples) for slot, one in enumerate(batch)]
        yield StepPlan(
            kind=Kind.RUN,
            step=number,
            admissions=np.empty(0, dtype=ADMISSION),
            rows=np.array(rows, dtype=np.int32),
            block_updates=np.array(table if number == 0 else (), dtype=np.int32).reshape(-1, 3),
            tokens=np.concatenate([np.array(one.tokens, dtype=np.int32) for one in batch]),
        )
