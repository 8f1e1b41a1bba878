"""A step of the replica: what is sent to every rank, and which sequences its rows belong to."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from workers.sequence import Sequence
from workers.step_plan import ADMISSION, LAST, NO_ADMISSIONS, NO_UPDATES, Kind, StepPlan

Batch = list[tuple[Sequence, int]]  # how many tokens of which sequence
Drafts = dict[int, list[int]]  # guesses of what follows, by slot


@dataclass(frozen=True, slots=True)
class Step:
    """A planned step and the sequences of its rows, with the tokens of each that are computed after it.

    `sampled` are those that get a token, and one more for each guess of their `drafts` that turns out right; there are
    `drafted` guesses in all. `prompt_tokens` were read beside one token each of `decoded` sequences that decode, of
    which the replica has `decoding` in all steps in flight together.
    """

    plan: StepPlan
    sequences: tuple[Sequence, ...]
    ends: tuple[int, ...]
    sampled: tuple[Sequence, ...]
    drafts: tuple[list[int], ...]
    drafted: int
    decoding: int
    decoded: int
    prompt_tokens: int

    @property
    def samples(self) -> int:
        return len(self.sampled) + self.drafted

    def alternatives(self) -> list[int | None]:
        """How many each sample reports, None for no logprobs at all."""
        asked = [sequence.request.sampling.logprobs for sequence in self.sampled]
        if not self.drafted:
            return asked
        return [n for n, draft in zip(asked, self.drafts, strict=True) for _ in range(1 + len(draft))]


_NO_DRAFT: list[int] = []
_UNKNOWN = [LAST]


def make_step(
    number: int,
    batch: Batch,
    drafts: Drafts,
    admissions: Seq[tuple[float, ...]],
    updates: Seq[tuple[int, int, int]],
    decoding: int,
    decoded: int,
) -> Step:
    """Plans the next tokens of the sequences in `batch`, `decoded` of which decode, and their `drafts` after them; all
    count as in flight from now. Where the token to compute is one that a step in flight draws, ranks put it in."""
    rows: list[int] = []
    tokens: list[int] = []
    ends, sampled, guessed, drafted = [], [], [], 0
    for sequence, count in batch:
        start = sequence.planned
        end = sequence.planned = start + count
        sequence.in_flight += 1
        if end >= len(sequence.tokens):
            sampled.append(sequence)
            tokens += sequence.tokens[start:end] or _UNKNOWN
            if drafts and (draft := drafts.get(sequence.slot)):
                more = len(draft)
                rows += (sequence.slot, start, count + more, 1 + more)
                guessed.append(draft)
                sequence.planned += more
                drafted += more
                tokens += draft
            else:
                rows += (sequence.slot, start, count, 1)
                guessed.append(_NO_DRAFT)
        else:
            rows += (sequence.slot, start, count, 0)
            tokens += sequence.tokens[start:end]
        ends.append(end)
    plan = StepPlan(
        kind=Kind.RUN,
        step=number,
        admissions=np.array(admissions, dtype=ADMISSION) if admissions else NO_ADMISSIONS,
        rows=np.array(rows, dtype=np.int32).reshape(-1, 4),
        block_updates=np.array(updates, dtype=np.int32) if updates else NO_UPDATES,
        tokens=np.array(tokens, dtype=np.int32),
    )
    sequences = tuple(sequence for sequence, _ in batch)
    read = len(tokens) - decoded - drafted
    return Step(plan, sequences, tuple(ends), tuple(sampled), tuple(guessed), drafted, decoding, decoded, read)
