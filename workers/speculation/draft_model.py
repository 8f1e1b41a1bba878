"""A model that guesses: a small one, or the first layers of the one that verifies, whole on rank 0.

It draws its guesses as the model draws tokens, with the same noise and parameters, so that two models that all but
agree draw all but the same (see `workers.sampling.noise`). Its KV cache has a place for every place of the model's, and
a sequence has the same blocks in both: what one has room for, the other has, and a sequence that loses its blocks loses
both. Nothing of the output depends on what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import torch

from partitioning.plan import Span
from workers.collectives import SoloGroup
from workers.kv_cache import BlockManager
from workers.model.stage import Stage
from workers.request import EngineConfig
from workers.sampling import Sampler
from workers.sequence import Sequence
from workers.speculation.acceptance import MOST
from workers.speculation.reading import Reading
from workers.step import Drafts
from workers.step_plan import ADMISSION, Kind, StepPlan, admission

_AT_ONCE = 128  # tokens of prompts that are read in one step, which makes it longer

_Row = tuple[Sequence, int, Seq[int], int]  # position and tokens of a sequence, 1 where one is drawn after them


@dataclass(frozen=True)
class DraftStage:
    """The whole of the guessing model. `layers`: it is so many of the first of the stage that verifies, and shares its
    KV cache."""

    stage: Stage
    layers: int | None
    vocab_size: int
    device: torch.device


class DraftModel:
    """Called between steps, by rank 0's engine."""

    def __init__(self, draft: DraftStage, config: EngineConfig, blocks: BlockManager) -> None:
        self._stage, self._layers = draft.stage, draft.layers
        self._most_tokens = config.max_batch_tokens
        self._blocks = blocks
        vocab = Span(0, draft.vocab_size)
        self._sampler = Sampler(config.max_running, vocab, SoloGroup(), draft.device, draft.stage.drawing)
        self._contents = [0] * blocks.num_blocks  # which identity of a block has been read into it
        self._passes = 0

    def ready(self, sequences: Seq[Sequence]) -> list[Sequence]:
        """Reads on in those that it does not know to their ends, a piece of bounded length. Returns those of which it
        can guess the next tokens."""
        budget = min(_AT_ONCE, self._most_tokens)
        rows: list[_Row] = []
        for sequence in sequences:
            reading = self._reading(sequence)
            unread = len(sequence.tokens) - 1 - reading.known
            if unread > MOST and budget > 0:
                count = min(unread, budget)
                budget -= count
                rows.append((sequence, reading.known, self._take(sequence, reading, count), 0))
        if rows:
            self._run(rows)
        ready, room = [], self._most_tokens
        for sequence in sequences:
            reading = self._reading(sequence)
            rest = len(sequence.tokens) - reading.known
            if rest <= MOST + 1 and rest <= room:
                room -= rest
                ready.append(sequence)
        return ready

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> Drafts:
        """So many guesses for each, at least one, of sequences that are ready and have blocks for them."""
        rows: list[_Row] = []
        for sequence, _ in wanted:
            reading = self._reading(sequence)
            start = reading.known
            rows.append((sequence, start, self._take(sequence, reading, len(sequence.tokens) - start), 1))
        drafts = {sequence.slot: [token] for (sequence, _), token in zip(wanted, self._run(rows), strict=True)}
        for depth in range(1, max(most for _, most in wanted)):
            going = [sequence for sequence, most in wanted if most > depth]
            rows = [(s, len(s.tokens) + depth - 1, drafts[s.slot][-1:], 1) for s in going]
            for sequence, token in zip(going, self._run(rows), strict=True):
                drafts[sequence.slot].append(token)
        for sequence, _ in wanted:
            assert sequence.reading is not None
            sequence.reading.guessed = drafts[sequence.slot][:-1]
        return drafts

    def _reading(self, sequence: Sequence) -> Reading:
        """Up to date with the sequence."""
        reading = sequence.reading
        if reading is None or reading.blocks is not sequence.blocks:
            reading = sequence.reading = Reading(sequence.blocks)
            self._recall(sequence, reading)
        elif reading.guessed:
            reading.settle(sequence.tokens)
        if self._layers is not None:
            reading.known = len(sequence.tokens) - 1
        return reading

    def _take(self, sequence: Sequence, reading: Reading, count: int) -> Seq[int]:
        """The next `count` tokens, which are then known."""
        start = reading.known
        reading.known = start + count
        self._note(sequence, reading)
        return sequence.tokens[start : reading.known]

    def _recall(self, sequence: Sequence, reading: Reading) -> None:
        """Blocks of the prefix cache that it has read for another sequence."""
        for block in sequence.blocks[: sequence.remembered]:
            if not self._contents[block] or self._contents[block] != self._blocks.identity(block):
                break
            reading.noted += 1
        reading.known = min(reading.noted * self._blocks.block_size, len(sequence.tokens) - 1)

    def _note(self, sequence: Sequence, reading: Reading) -> None:
        full = min(reading.known // self._blocks.block_size, sequence.remembered)
        for block in sequence.blocks[reading.noted : full]:
            self._contents[block] = self._blocks.identity(block)
        reading.noted = max(reading.noted, full)

    def _run(self, rows: Seq[_Row]) -> list[int]:
        """One pass; the drawn tokens."""
        self._passes += 1
        admissions: list[tuple[float, ...]] = []
        updates: list[tuple[int, int, int]] = []
        for sequence, *_ in rows:
            reading = sequence.reading
            assert reading is not None
            if not reading.told:
                sampling = replace(sequence.request.sampling, logprobs=None)
                admissions.append(admission(sequence.slot, sequence.request.prompt_len, sampling))
            fresh = sequence.blocks[reading.told :]
            updates += [(sequence.slot, index, block) for index, block in enumerate(fresh, start=reading.told)]
            reading.told = len(sequence.blocks)
        plan = StepPlan(
            kind=Kind.RUN,
            step=self._passes,
            admissions=np.array(admissions, dtype=ADMISSION),
            rows=np.array([(s.slot, at, len(tokens), drawn) for s, at, tokens, drawn in rows], dtype=np.int32),
            block_updates=np.array(updates, dtype=np.int32).reshape(-1, 3),
            tokens=np.array([token for _, _, tokens, _ in rows for token in tokens], dtype=np.int32),
        )
        self._sampler.apply(plan)
        slots, positions = plan.samples()
        draws = self._sampler.draws(slots, positions)
        result = self._stage.run(plan, None, draws, self._layers)
        if not len(slots):
            return []
        if result.best is not None:
            return self._sampler.choose(*result.best).tokens
        assert result.logits is not None
        return self._sampler.sample(result.logits, slots, positions).result().tokens
