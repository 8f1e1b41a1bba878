"""A StepPlan: what every rank does in one step, as one flat vector of 32-bit words.

Ranks keep per-sequence state (sampling parameters, block tables, token counts), so a plan only carries deltas.
Floats travel as their bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from workers.request import SamplingParams

Ints = npt.NDArray[np.int32]

LAST = -1  # in a plan: the token drawn last for the sequence, which only the ranks know yet

_MAGIC = 0x5048_0003  # "PH", format 3
_HEADER = 8


class Kind(IntEnum):
    RUN = 1
    IDLE = 2  # a sign of life from rank 0
    STOP = 3


# One admission: the sequence's slot, where its prompt ends, and its sampling parameters.
ADMISSION = np.dtype(
    [
        ("slot", "<i4"),
        ("prompt_len", "<i4"),
        ("seed_low", "<i4"),
        ("seed_high", "<i4"),
        ("temperature", "<f4"),
        ("top_k", "<i4"),
        ("top_p", "<f4"),
        ("min_p", "<f4"),
        ("presence_penalty", "<f4"),
        ("frequency_penalty", "<f4"),
        ("repetition_penalty", "<f4"),
        ("logprobs", "<i4"),  # alternatives to report; -1 for no logprobs at all
    ]
)
_ADMISSION_WORDS = ADMISSION.itemsize // 4

NO_ADMISSIONS = np.empty(0, dtype=ADMISSION)
NO_UPDATES = np.empty((0, 3), dtype=np.int32)


def admission(slot: int, prompt_len: int, sampling: SamplingParams) -> tuple[float, ...]:
    """One row for an ADMISSION array."""
    seed = sampling.seed & 0xFFFF_FFFF_FFFF_FFFF
    low, high = (int(word) for word in np.array([seed], dtype=np.uint64).view(np.int32))
    return (
        slot,
        prompt_len,
        low,
        high,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
        -1 if sampling.logprobs is None else sampling.logprobs,
    )


@dataclass(frozen=True)
class StepPlan:
    """`rows` has one row a sequence in the batch, `tokens` their tokens, one sequence after the other; of a row of one
    token it may be LAST.

    rows [sequences, 4]: slot, position of the first token, number of tokens, after how many of the last of them a token
    is sampled.
    block_updates [updates, 3]: slot, index in the sequence's block table, KV block.
    """

    kind: Kind
    step: int
    admissions: npt.NDArray[np.void]
    rows: Ints
    block_updates: Ints
    tokens: Ints

    def samples(self) -> tuple[Ints, npt.NDArray[np.int64]]:
        """The slots and positions of the tokens to be sampled, both [samples]."""
        slots, positions = [], []
        for slot, start, count, sampled in self.rows.tolist():
            end = start + count
            for position in range(end - sampled + 1, end + 1):
                slots.append(slot)
                positions.append(position)
        return np.array(slots, dtype=np.int32), np.array(positions, dtype=np.int64)

    def pack(self) -> Ints:
        parts = (self.admissions, self.rows, self.block_updates, self.tokens)
        step = self.step & 0x7FFF_FFFF  # a replica that lives for a month has more of them
        header = struct.pack(f"={_HEADER}i", _MAGIC, self.kind, step, *map(len, parts), 0)
        return np.frombuffer(bytearray().join((header, *(part.tobytes() for part in parts))), dtype=np.int32)

    @staticmethod
    def unpack(words: Ints) -> StepPlan:
        """Views into `words`.

        Raises:
            ValueError: not a plan, or not of this format.
        """
        if len(words) < _HEADER:
            raise ValueError(f"not a step plan: {len(words)} words, fewer than the {_HEADER} of its head")
        magic, kind, step, *counts, _ = words[:_HEADER].tolist()
        admissions, rows, updates, tokens = counts
        ends = [*accumulate((_HEADER, admissions * _ADMISSION_WORDS, rows * 4, updates * 3, tokens))]
        if magic != _MAGIC or min(step, *counts) < 0 or len(words) != ends[-1]:
            raise ValueError(
                f"not a step plan of this version: magic {magic:#x}, {len(words)} words "
                "(do all ranks run the same release of Phalanx?)"
            )
        plan = StepPlan(
            kind=Kind(kind),
            step=step,
            admissions=words[ends[0] : ends[1]].view(ADMISSION),
            rows=words[ends[1] : ends[2]].reshape(-1, 4),
            block_updates=words[ends[2] : ends[3]].reshape(-1, 3),
            tokens=words[ends[3] : ends[4]],
        )
        # The engines take this on trust.
        counted = 0
        for row in plan.rows.tolist():
            _, _, count, sampled = row
            if min(row) < 0 or sampled > count:
                raise ValueError("a step plan whose rows have negative numbers, or sample after tokens that they lack")
            counted += count
        if counted != tokens:
            raise ValueError(f"a step plan of {tokens} tokens whose rows have {counted}")
        return plan


def control_plan(kind: Kind, step: int) -> StepPlan:
    """A plan without work."""
    empty = np.empty(0, dtype=np.int32)
    return StepPlan(kind, step, NO_ADMISSIONS, empty.reshape(0, 4), NO_UPDATES, empty)
