"""Token-budget continuous batching: which tokens of which sequences run in the next step.

One budget for everything: a decode is a chunk of one token, a prefill is cut into chunks that fit what is left.
Running sequences come before waiting ones. When KV blocks run out, the sequence that would be served last gives its
blocks back and is computed again later.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from workers.kv_cache import BlockManager
from workers.request import EngineConfig, FinishReason, Output, Request, TokenLogprob
from workers.step_plan import ADMISSION, Kind, StepPlan, admission


@dataclass(eq=False)
class Sequence:
    """A request on its way.

    The KV of the first `planned` tokens is in `blocks`, or will be once the steps in flight have ended; the first
    `remembered` blocks are in the prefix cache, the last of them under the identity `chain`.
    """

    request: Request
    order: int
    tokens: list[int]
    slot: int = -1
    blocks: list[int] = field(default_factory=list)
    planned: int = 0
    remembered: int = 0
    chain: int = 0
    cached: int = 0
    in_flight: int = 0
    cancelled: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        """Served in ascending order."""
        return (-self.request.priority, self.order)

    @property
    def uses_penalties(self) -> bool:
        s = self.request.sampling
        return bool(s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0)


@dataclass(frozen=True)
class Step:
    """A planned step and the sequences of its rows; `sampled` are those that get a token."""

    plan: StepPlan
    sequences: tuple[Sequence, ...]
    sampled: tuple[Sequence, ...]


class Scheduler:
    """Owns the sequences and the KV blocks of one replica.

    `micro_batches` steps are in flight at once (one a pipeline stage). A prompt's chunks may follow each other through
    the stages; a decode waits for its token.
    """

    def __init__(self, config: EngineConfig, blocks: BlockManager, micro_batches: int) -> None:
        self._config = config
        self._blocks = blocks
        self._micro_batches = micro_batches
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        self._running: list[Sequence] = []
        self._free_slots = list(range(config.max_running - 1, -1, -1))
        self._by_key: dict[int, Sequence] = {}
        self._arrivals = 0
        self._steps = 0
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
        heapq.heappush(self._waiting, (sequence.rank, sequence))

    def cancel(self, key: int) -> Output | None:
        """Ends a request; its blocks are free at once, or when the step it is in has ended."""
        sequence = self._by_key.pop(key, None)
        if sequence is None:
            return None
        sequence.cancelled = True
        if sequence.slot < 0:
            self._waiting = [entry for entry in self._waiting if entry[1] is not sequence]
            heapq.heapify(self._waiting)
        elif not sequence.in_flight:
            self._retire(sequence)
        return self._output(sequence, (), (), FinishReason.CANCELLED)

    def schedule(self) -> Step | None:
        """The next step, or None when no sequence can run before another step has ended."""
        self._admissions, self._updates = [], []
        budget = self._config.max_batch_tokens
        # A fair share for every micro-batch keeps all pipeline stages busy.
        share = -(-(len(self._running) + len(self._waiting)) // self._micro_batches)
        batch: list[tuple[Sequence, int]] = []
        for sequence in [s for s in self._running if s.planned < len(s.tokens) and not s.cancelled]:
            if budget == 0 or len(batch) >= share:
                break
            if sequence.slot < 0:
                continue  # gave its blocks to one before it
            count = min(len(sequence.tokens) - sequence.planned, budget)
            if not self._grow(sequence, sequence.planned + count):
                break
            batch.append((sequence, count))
            budget -= count
        while budget and self._waiting and self._free_slots and len(batch) < share:
            sequence = self._waiting[0][1]
            if not self._admit(sequence):
                break
            heapq.heappop(self._waiting)
            count = min(len(sequence.tokens) - sequence.planned, budget)
            batch.append((sequence, count))
            budget -= count
        return self._step(batch) if batch else None

    def commit(self, step: Step, tokens: Iterable[int], logprobs: Iterable[TokenLogprob | None]) -> list[Output]:
        """Takes in the sampled tokens of a finished step, in the order of `step.sampled`."""
        for sequence, (_, start, count, _) in zip(step.sequences, step.plan.rows.tolist(), strict=True):
            sequence.in_flight -= 1
            self._remember(sequence, start + count)
        outputs = []
        for sequence, token, logprob in zip(step.sampled, tokens, logprobs, strict=True):
            if sequence.cancelled:
                continue
            sequence.tokens.append(token)
            finish = self._finish_reason(sequence, token)
            outputs.append(self._output(sequence, (token,), () if logprob is None else (logprob,), finish))
            if finish is not None:
                del self._by_key[sequence.request.key]
                self._retire(sequence)
        for sequence in step.sequences:
            if sequence.cancelled and not sequence.in_flight and sequence.slot >= 0:
                self._retire(sequence)
        return outputs

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

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Makes room for `tokens`, taking blocks from the sequences served after this one; False if it lost its own."""
        missing = self._blocks.blocks_for(tokens) - len(sequence.blocks)
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
        heapq.heappush(self._waiting, (sequence.rank, sequence))

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

    def _step(self, batch: list[tuple[Sequence, int]]) -> Step:
        self._steps += 1
        rows, tokens, sampled = [], [], []
        for sequence, count in batch:
            end = sequence.planned + count
            last = end == len(sequence.tokens)
            rows.append((sequence.slot, sequence.planned, count, int(last)))
            tokens.extend(sequence.tokens[sequence.planned : end])
            sequence.planned = end
            sequence.in_flight += 1
            if last:
                sampled.append(sequence)
        plan = StepPlan(
            kind=Kind.RUN,
            step=self._steps,
            admissions=np.array(self._admissions, dtype=ADMISSION),
            rows=np.array(rows, dtype=np.int32),
            block_updates=np.array(self._updates, dtype=np.int32).reshape(-1, 3),
            tokens=np.array(tokens, dtype=np.int32),
        )
        return Step(plan, tuple(sequence for sequence, _ in batch), tuple(sampled))

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling = sequence.request.sampling
        if token in sampling.stop_token_ids:
            return FinishReason.STOP
        if token in self._config.eos_token_ids and not sampling.ignore_eos:
            return FinishReason.STOP
        length = len(sequence.tokens)
        if length - sequence.request.prompt_len >= sampling.max_tokens or length >= self._config.max_model_len:
            return FinishReason.LENGTH
        return None

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
