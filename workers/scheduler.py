"""Token-budget continuous batching: which tokens of which sequences run in the next step.

One budget for everything: a decode is a chunk of one token, a prefill is cut into chunks that fit what is left. Decodes
come first, then prompts that are being read, then waiting ones, each in the order of their rank; the `Pacer` bounds how
much of prompts joins a step with decodes. When KV blocks run out, the sequence that would be served last gives its
blocks back and is computed again later.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from workers.kv_cache import BlockManager
from workers.pacing import MIN_CHUNK, Pacer
from workers.request import EngineConfig, FinishReason, Output, Request, TokenLogprob
from workers.sequence import Sequence
from workers.step_plan import ADMISSION, Kind, StepPlan, admission
from workers.waiting_queue import WaitingQueue

_Batch = list[tuple[Sequence, int]]  # how many tokens of which sequence


@dataclass(frozen=True, slots=True)
class Step:
    """A planned step and the sequences of its rows, with the tokens of each that are computed after it.

    `sampled` are those that get a token; `prompt_tokens` were read beside one token each of sequences that decode, of
    which the replica has `decoding` in all steps in flight together.
    """

    plan: StepPlan
    sequences: tuple[Sequence, ...]
    ends: tuple[int, ...]
    sampled: tuple[Sequence, ...]
    decoding: int
    prompt_tokens: int


class Scheduler:
    """Owns the sequences and the KV blocks of one replica.

    `micro_batches` steps are in flight at once (one a pipeline stage). A prompt's chunks may follow each other through
    the stages; a decode waits for its token.
    """

    def __init__(self, config: EngineConfig, blocks: BlockManager, pacer: Pacer, micro_batches: int) -> None:
        self._config = config
        self._blocks = blocks
        self._pacer = pacer
        self._micro_batches = micro_batches
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []  # by rank
        self._free_slots = list(range(config.max_running - 1, -1, -1))
        self._by_key: dict[int, Sequence] = {}
        self._arrivals = 0
        self._steps = 0
        self._in_flight = 0
        self._admissions: list[tuple[float, ...]] = []
        self._updates: list[tuple[int, int, int]] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def steps(self) -> int:
        return self._steps

    def add(self, request: Request) -> None:
        self._arrivals += 1
        sequence = Sequence(request, self._arrivals, list(request.token_ids))
        self._by_key[request.key] = sequence
        self._waiting.push(sequence)

    def cancel(self, key: int) -> Output | None:
        """Ends a request; its blocks are free at once, or when the step it is in has ended."""
        sequence = self._by_key.pop(key, None)
        if sequence is None:
            return None
        sequence.cancelled = True
        if sequence.slot < 0:
            self._waiting.cancelled()
        elif not sequence.in_flight:
            self._retire(sequence)
        return self._output(sequence, (), (), FinishReason.CANCELLED)

    def schedule(self) -> Step | None:
        """The next step, or None when no sequence can run before another step has ended."""
        self._admissions, self._updates = [], []
        decodes, prompts = [], []
        for sequence in self._running:
            left = len(sequence.tokens) - sequence.planned
            if left == 1 and not sequence.cancelled:
                decodes.append(sequence)
            elif left > 1 and not sequence.cancelled:
                prompts.append(sequence)
        decoding = len(self._running) - len(prompts)
        arriving = min(len(self._waiting), len(self._free_slots))
        # A fair share for every micro-batch keeps all pipeline stages busy.
        share = -(-(len(self._running) + arriving) // self._micro_batches)
        budget = self._config.max_batch_tokens
        reserved = min(MIN_CHUNK, budget // 2) if prompts or arriving else 0
        batch = self._decode_rows(decodes, min(share, budget - reserved))
        decoded = len(batch)
        budget -= decoded
        allowed = self._pacer.prompt_tokens(decoding, len(prompts) + arriving)
        if allowed is not None and (batch or self._in_flight):
            budget = min(budget, allowed)
        self._prompt_rows(prompts, batch, share, budget)
        return self._step(batch, decoding, decoded) if batch else None

    def commit(self, step: Step, tokens: Iterable[int], logprobs: Iterable[TokenLogprob | None]) -> list[Output]:
        """Takes in the sampled tokens of a finished step, in the order of `step.sampled`."""
        self._in_flight -= 1
        size = self._blocks.block_size
        for sequence, end in zip(step.sequences, step.ends, strict=True):
            sequence.in_flight -= 1
            if end >= (sequence.remembered + 1) * size:
                self._remember(sequence, end)
        outputs = []
        for sequence, token, logprob in zip(step.sampled, tokens, logprobs, strict=True):
            if sequence.cancelled:
                continue
            sequence.tokens.append(token)
            finish = sequence.finish_reason(self._config)
            outputs.append(self._output(sequence, (token,), () if logprob is None else (logprob,), finish))
            if finish is not None:
                del self._by_key[sequence.request.key]
                self._retire(sequence)
        for sequence in step.sequences:
            if sequence.cancelled and not sequence.in_flight and sequence.slot >= 0:
                self._retire(sequence)
        return outputs

    def _decode_rows(self, decodes: list[Sequence], most: int) -> _Batch:
        batch: _Batch = []
        for sequence in decodes:
            if len(batch) >= most:
                break
            if sequence.slot < 0:
                continue  # gave its blocks to one before it
            if not self._grow(sequence):
                break
            batch.append((sequence, 1))
        return batch

    def _prompt_rows(self, prompts: list[Sequence], batch: _Batch, share: int, budget: int) -> None:
        """Adds chunks of prompts to `batch`, `budget` tokens together, up to `share` rows in all."""
        for sequence in prompts:
            if budget <= 0 or len(batch) >= share:
                return
            if sequence.slot < 0:
                continue
            budget -= self._chunk(sequence, batch, budget)
        while budget > 0 and len(batch) < share and self._waiting and self._free_slots:
            sequence = self._waiting.first()
            if not self._admit(sequence):
                return
            self._waiting.pop()
            budget -= self._chunk(sequence, batch, budget)

    def _chunk(self, sequence: Sequence, batch: _Batch, budget: int) -> int:
        count = min(len(sequence.tokens) - sequence.planned, budget)
        batch.append((sequence, count))
        return count

    def _admit(self, sequence: Sequence) -> bool:
        found = [] if sequence.uses_penalties else self._blocks.find_prefix(sequence.tokens)
        fresh = self._blocks.take(self._blocks.blocks_for(len(sequence.tokens)) - len(found))
        if fresh is None:
            self._blocks.release(found)
            return False
        slot = sequence.slot = self._free_slots.pop()
        sequence.blocks = found + fresh
        sequence.planned = len(found) * self._blocks.block_size
        sequence.cached = max(sequence.cached, min(sequence.planned, sequence.request.prompt_len))
        sequence.remembered = len(found)
        sequence.chain = self._blocks.identity(found[-1]) if found else 0
        insort(self._running, sequence, key=lambda s: s.rank)
        self._admissions.append(admission(slot, sequence.request.prompt_len, sequence.request.sampling))
        self._updates.extend((slot, index, block) for index, block in enumerate(sequence.blocks))
        return True

    def _grow(self, sequence: Sequence) -> bool:
        """Makes room for one more token, taking blocks from sequences served after this one; False if it lost its own.

        Prompts have all their blocks from the start.
        """
        missing = self._blocks.blocks_for(sequence.planned + 1) - len(sequence.blocks)
        if missing <= 0:
            return True
        while (fresh := self._blocks.take(missing)) is None:
            victim = next(s for s in reversed(self._running) if not s.in_flight)
            self._preempt(victim)
            if victim is sequence:
                return False
        first = len(sequence.blocks)
        self._updates.extend((sequence.slot, first + i, block) for i, block in enumerate(fresh))
        sequence.blocks.extend(fresh)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._updates = [update for update in self._updates if update[0] != sequence.slot]
        self._retire(sequence)
        self._waiting.push(sequence)

    def _retire(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._blocks.release(sequence.blocks)
        self._free_slots.append(sequence.slot)
        sequence.blocks = []
        sequence.slot = -1

    def _remember(self, sequence: Sequence, computed: int) -> None:
        size = self._blocks.block_size
        while sequence.remembered < computed // size:
            start = sequence.remembered * size
            block = sequence.blocks[sequence.remembered]
            sequence.chain = self._blocks.remember(sequence.chain, block, sequence.tokens[start : start + size])
            sequence.remembered += 1

    def _step(self, batch: _Batch, decoding: int, decoded: int) -> Step:
        self._steps += 1
        self._in_flight += 1
        rows: list[int] = []
        tokens: list[int] = []
        ends, sampled = [], []
        for sequence, count in batch:
            start = sequence.planned
            end = sequence.planned = start + count
            sequence.in_flight += 1
            if end == len(sequence.tokens):
                sampled.append(sequence)
                rows += (sequence.slot, start, count, 1)
            else:
                rows += (sequence.slot, start, count, 0)
            tokens += sequence.tokens[start:end]
            ends.append(end)
        plan = StepPlan(
            kind=Kind.RUN,
            step=self._steps,
            admissions=np.array(self._admissions, dtype=ADMISSION),
            rows=np.array(rows, dtype=np.int32).reshape(-1, 4),
            block_updates=np.array(self._updates, dtype=np.int32).reshape(-1, 3),
            tokens=np.array(tokens, dtype=np.int32),
        )
        prompt_tokens = len(tokens) - decoded
        self._pacer.started(prompt_tokens)
        sequences = tuple(sequence for sequence, _ in batch)
        return Step(plan, sequences, tuple(ends), tuple(sampled), decoding, prompt_tokens)

    def _output(
        self,
        sequence: Sequence,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        finish: FinishReason | None,
    ) -> Output:
        return Output(
            key=sequence.request.key,
            first_index=len(sequence.tokens) - len(tokens) - sequence.request.prompt_len,
            token_ids=tokens,
            logprobs=logprobs,
            finish_reason=finish,
            prompt_tokens=sequence.request.prompt_len,
            cached_tokens=sequence.cached,
        )
