"""Token-budget continuous batching: which tokens of which sequences run in the next step.

One budget for everything: a decode is a chunk of one token, a prefill is cut into chunks that fit what is left. Decodes
come first, then prompts, those that are being read before waiting ones; the `Pacer` bounds how much of prompts joins a
step with decodes. There is one order for all of it: the tenant that was served least comes first (`workers.tenant`),
and of one tenant's sequences the one with the lowest rank. When KV blocks run out, the last in this order gives its
blocks back and is computed again later.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence as Seq
from time import monotonic

from workers.bounds import FairBounds
from workers.kv_cache import BlockManager
from workers.observation.measures import Measures
from workers.pacing import MIN_CHUNK, Pacer, steps_of_round
from workers.request import EngineConfig, FinishReason, Output, Request, TokenLogprob
from workers.sequence import Sequence, rank_of
from workers.speculation.speculation import Speculation
from workers.step import Batch, Drafts, Step, make_step
from workers.step_plan import admission
from workers.tenant import DRAWN, Tenants
from workers.waiting_queue import WaitingQueue

# What has to be served, at the prices of `workers.tenant`, for each position that is computed again because its place
# went to another tenant.
_PER_RECLAIMED = 4

_MOST_SAMPLES = 32  # with guesses, of which a step may have more than sequences; `max_running` if that is more


class Scheduler:
    """Owns the sequences and the KV blocks of one replica.

    `micro_batches` steps are in flight at once (one a pipeline stage), with several one more while prompts are read, as
    steps then differ in length and a stage would wait for the tokens of a long one. A prompt's chunks may follow each
    other through the stages; a decode waits for its token. With `look_ahead` it does not: a second step follows, whose
    tokens are those that the first one draws, and which was in vain for sequences that these end.
    """

    def __init__(
        self,
        config: EngineConfig,
        blocks: BlockManager,
        pacer: Pacer,
        micro_batches: int,
        speculation: Speculation | None = None,
        look_ahead: bool = False,
    ) -> None:
        self._config = config
        self._blocks = blocks
        self._pacer = pacer
        self._micro_batches = micro_batches
        self._look_ahead = look_ahead
        self.most_in_flight = steps_of_round(micro_batches) + look_ahead
        self._speculation = speculation
        self.bounds = FairBounds(config.max_waiting, config.max_waiting_tokens)
        self.measures = Measures()
        self._tenants = Tenants()
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []  # by rank
        self._free_slots = list(range(config.max_running - 1, -1, -1))
        self._by_key: dict[int, Sequence] = {}
        self._arrivals = 0
        self.parked = 0
        self.steps = 0
        self._since_reclaim = 0.0
        self._in_flight = 0
        self._admissions: list[tuple[float, ...]] = []
        self._updates: list[tuple[int, int, int]] = []
        self._expired: list[Output] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def reserve(self, request: Request) -> bool:
        """Whether there is room in the queue, which is then kept for this request. May be called from any thread."""
        return self.bounds.take(request.tenant, request.weight, 1, request.most_tokens(self._config.max_model_len))

    def add(self, request: Request) -> None:
        """Queues a request for which there is room."""
        self._arrivals += 1
        tenant = self._tenants.get(request.tenant, request.weight)
        tenant.sequences += 1
        now = monotonic()
        rank = rank_of(request.priority, now, self._arrivals)
        sequence = Sequence(request, tenant, rank, list(request.token_ids), now)
        self._by_key[request.key] = sequence
        self._waiting.push(sequence)

    def cancel(self, key: int) -> Output | None:
        """Ends a request; its blocks are free at once, or when the step it is in has ended."""
        sequence = self._by_key.get(key)
        if sequence is None:
            return None
        self._end(sequence)
        self._leave(sequence)
        return sequence.output(finish=FinishReason.CANCELLED)

    def park(self, key: int) -> None:
        """Lets a sequence rest: its place and blocks are free at once, or when the step it is in has ended, whose token
        it still gets. Unknown keys are ignored."""
        sequence = self._by_key.get(key)
        if sequence is not None and not sequence.parked:
            sequence.parked = True
            self.parked += 1
            self._leave(sequence)

    def unpark(self, key: int) -> None:
        """Lets it go on where it was; it waits like others for a place."""
        sequence = self._by_key.get(key)
        if sequence is not None and sequence.parked:
            sequence.parked = False
            self.parked -= 1
            if sequence.slot < 0:
                self._waiting.push(sequence)

    def take_expired(self) -> list[Output]:
        """The ends of requests that were dropped since the last call, as it was too late for their first tokens."""
        expired, self._expired = self._expired, []
        return expired

    def schedule(self) -> Step | None:
        """The next step, or None when no sequence can run before another step has ended."""
        self._admissions, self._updates = [], []
        if self._waiting and not self._reclaim():
            return None
        decodes, prompts = [], []
        for sequence in self._running:
            left = len(sequence.tokens) - sequence.planned
            if sequence.ended or sequence.parked:
                continue
            if left > 1:
                prompts.append(sequence)
            elif left == 1:
                decodes.append(sequence)
            elif self._look_ahead and sequence.tokens_left(self._config) > 1:
                if not sequence.runs_ahead:
                    return None  # so that nobody runs in every second step
                decodes.append(sequence)
        if self._look_ahead and self._in_flight and not self._room_for(decodes):
            return None
        if self._shared:
            decodes.sort(key=Sequence.order)
            prompts.sort(key=Sequence.order)
        decoding = len(self._running) - len(prompts)
        arriving = min(len(self._waiting), len(self._free_slots))
        if self._in_flight >= self._micro_batches + self._look_ahead and not (prompts or arriving):
            return None
        # A fair share for every micro-batch keeps all pipeline stages busy.
        share = -(-(len(self._running) + arriving) // self._micro_batches)
        budget = self._config.max_batch_tokens
        reserved = min(MIN_CHUNK, budget // 2) if prompts or arriving else 0
        batch = self._decode_rows(decodes, min(share, budget - reserved))
        budget -= (decoded := len(batch))
        allowed = self._pacer.prompt_tokens(decoding, len(prompts) + arriving)
        if allowed is not None and (batch or self._in_flight):
            budget = min(budget, allowed)
        drafts: Drafts = {}
        if prompts or arriving:
            steps = self.most_in_flight - self._look_ahead
            even = -(-self._config.max_batch_tokens // steps)  # no stage waits long for the first step
            self._prompt_rows(prompts, batch, share, min(budget, even))
        elif self._speculation is not None and batch:
            room = min(budget, max(self._config.max_running, _MOST_SAMPLES) - len(batch))
            drafts = self._speculation.drafts(batch, room, self._extend)
        return self._step(batch, drafts, decoding, decoded) if batch else None

    def commit(self, step: Step, tokens: Seq[int], logprobs: Seq[TokenLogprob | None]) -> list[Output]:
        """Takes in the sampled tokens of a finished step, in the order of `step.sampled`: of each sequence one, and one
        after every guess."""
        self._in_flight -= 1
        size = self._blocks.block_size
        for sequence, end in zip(step.sequences, step.ends, strict=True):
            sequence.in_flight -= 1
            if end >= (sequence.remembered + 1) * size:
                sequence.remember(self._blocks, end)
        outputs = []
        place = 0
        for sequence, draft in zip(step.sampled, step.drafts, strict=True):
            first = place
            place += 1 + len(draft)
            if sequence.ended:
                continue
            drawn: tuple[int, ...] = (tokens[first],)
            if draft:
                drawn, finish = sequence.take(tokens[first:place], draft, self._config)
                self._settle(sequence, len(draft), len(drawn) - 1, finish)
            else:
                sequence.tokens.append(tokens[first])
                finish = sequence.finish_reason(self._config)
            reported = () if logprobs[first] is None else tuple(filter(None, logprobs[first : first + len(drawn)]))
            outputs.append(sequence.output(drawn, reported, finish))
            if finish is not None:
                self._end(sequence)
        for sequence in step.sequences:
            if sequence.ended or sequence.parked:
                self._leave(sequence)
        return outputs

    @property
    def _shared(self) -> bool:
        """Whether sequences of more than one tenant run."""
        return bool(self._running) and self._running[0].tenant.running < len(self._running)

    def _room_for(self, decodes: list[Sequence]) -> bool:
        """Whether all may go on without blocks of others, who can give none up while a step of theirs is in flight."""
        size = self._blocks.block_size
        return self._blocks.free >= sum(sequence.planned >= len(sequence.blocks) * size for sequence in decodes)

    def _decode_rows(self, decodes: list[Sequence], most: int) -> Batch:
        batch: Batch = []
        for sequence in decodes:
            if len(batch) >= most:
                break
            if sequence.slot < 0:
                continue  # gave its blocks to one before it
            if not self._grow(sequence):
                break
            batch.append((sequence, 1))
        for sequence, _ in batch:
            self._charge(sequence, 1)
        return batch

    def _extend(self, sequence: Sequence, guesses: int) -> bool:
        """Makes room for so many guesses; False where other sequences have all blocks."""
        missing = self._blocks.blocks_for(sequence.planned + 1 + guesses) - len(sequence.blocks)
        if missing > 0:
            if (fresh := self._blocks.take(missing)) is None:
                return False
            self._give(sequence, fresh)
        return True

    def _settle(self, sequence: Sequence, drafted: int, accepted: int, finish: FinishReason | None) -> None:
        """Takes back the guesses that were wrong. What came of right ones is paid for as without guesses."""
        assert self._speculation is not None
        self._speculation.judged(sequence, drafted, accepted, ended=finish is not None)
        sequence.planned = len(sequence.tokens) - 1
        sequence.charged = max(sequence.charged, sequence.planned)
        cost = accepted * (1 + DRAWN)
        sequence.tenant.counter += cost / sequence.tenant.weight
        self._since_reclaim += cost
        sequence.remember(self._blocks, sequence.planned)

    def _prompt_rows(self, prompts: list[Sequence], batch: Batch, share: int, budget: int) -> None:
        """Adds chunks of prompts to `batch`, `budget` tokens together, up to `share` rows in all."""
        reading = deque(sequence for sequence in prompts if sequence.slot >= 0)
        admitting = True
        while budget > 0 and len(batch) < share:
            waiting = self._first_waiting() if admitting and self._free_slots else None
            if reading and (waiting is None or reading[0].tenant.counter <= waiting.tenant.counter):
                sequence = reading.popleft()
            elif waiting is None:
                return
            elif self._admit(waiting):
                sequence = waiting
            else:
                admitting = False
                continue
            count = min(len(sequence.tokens) - sequence.planned, budget)
            batch.append((sequence, count))
            self._charge(sequence, count)
            budget -= count

    def _first_waiting(self) -> Sequence | None:
        """The next that can still have its first token in time; those before it that cannot are dropped."""
        while (sequence := self._waiting.first()) is not None:
            late = sequence.too_late(self._pacer.reading_s(len(sequence.tokens)), self._config.objectives.ttft_s)
            if late is None:
                break
            self._end(sequence)
            self._leave(sequence)
            self._expired.append(sequence.output(finish=late))
        return sequence

    def _charge(self, sequence: Sequence, count: int) -> None:
        """Puts the next `count` positions on its tenant's account, save those it has paid before it lost its place."""
        end = sequence.planned + count
        cost = DRAWN if end >= len(sequence.tokens) else 0.0
        if end > sequence.charged:
            cost += end - max(sequence.planned, sequence.charged)
            sequence.charged = end
        sequence.tenant.counter += cost / sequence.tenant.weight
        self._since_reclaim += cost

    def _reclaim(self) -> bool:
        """Takes a place for the tenant whose turn it is, which has fewer than its share of them, from the one that is
        furthest ahead. Not often: what is computed again costs a quarter of what was served at most. False where the
        step that the other is in has to end before it can give up its place."""
        waiting = self._first_waiting()
        if waiting is None or waiting.tenant.running == len(self._running):
            return True
        if self._free_slots and self._blocks.free >= self._blocks.blocks_for(len(waiting.tokens)):
            return True
        own = waiting.tenant
        others = (s for s in self._running if s.tenant is not own and (self._look_ahead or not s.in_flight))
        victim = max(others, key=Sequence.order, default=None)
        if victim is None or self._since_reclaim < _PER_RECLAIMED * len(victim.tokens):
            return True
        ahead = victim.tenant
        if ahead.counter > own.counter and (own.running + 1) * ahead.weight <= (ahead.running - 1) * own.weight:
            if victim.in_flight:
                return False
            self._since_reclaim = 0.0
            self._preempt(victim)
        return True

    def _admit(self, sequence: Sequence) -> bool:
        root = sequence.tenant.root
        found = [] if sequence.uses_penalties else self._blocks.find_prefix(root, sequence.tokens)
        fresh = self._blocks.take(self._blocks.blocks_for(len(sequence.tokens)) - len(found))
        if fresh is None:
            self._blocks.release(found)
            return False
        self._waiting.pop()
        self.measures.admitted(sequence, len(found) * self._blocks.block_size)
        self._uncount(sequence)
        slot = sequence.slot = self._free_slots.pop()
        sequence.blocks = found + fresh
        sequence.planned = len(found) * self._blocks.block_size
        sequence.cached = max(sequence.cached, min(sequence.planned, sequence.request.prompt_len))
        sequence.remembered = len(found)
        sequence.chain = self._blocks.identity(found[-1]) if found else root
        sequence.tenant.running += 1
        insort(self._running, sequence, key=lambda s: s.rank)
        self._admissions.append(admission(slot, sequence.request.prompt_len, sequence.request.sampling))
        self._updates.extend((slot, index, block) for index, block in enumerate(sequence.blocks))
        return True

    def _grow(self, sequence: Sequence) -> bool:
        """Makes room for one more token, taking blocks from sequences served after this one; False if it lost its own.
        Prompts have all their blocks from the start."""
        missing = self._blocks.blocks_for(sequence.planned + 1) - len(sequence.blocks)
        if missing <= 0:
            return True
        while (fresh := self._blocks.take(missing)) is None:
            victim = max((s for s in self._running if not s.in_flight), key=Sequence.order)
            self._preempt(victim)
            if victim is sequence:
                return False
        self._give(sequence, fresh)
        return True

    def _give(self, sequence: Sequence, fresh: list[int]) -> None:
        first = len(sequence.blocks)
        self._updates.extend((sequence.slot, first + i, block) for i, block in enumerate(fresh))
        sequence.blocks.extend(fresh)

    def _preempt(self, sequence: Sequence) -> None:
        self.measures.preemptions += 1
        self._updates = [update for update in self._updates if update[0] != sequence.slot]
        self._retire(sequence)
        self._waiting.push(sequence)

    def _end(self, sequence: Sequence) -> None:
        """It is known no more."""
        sequence.ended = True
        del self._by_key[sequence.request.key]
        sequence.tenant.sequences -= 1
        self.parked -= sequence.parked

    def _leave(self, sequence: Sequence) -> None:
        """Takes it out of the queue or of the batch; out of a step in flight, `commit` does."""
        if sequence.waiting:
            self._waiting.remove(sequence)
            self._uncount(sequence)
        elif sequence.slot >= 0 and not sequence.in_flight:
            self._retire(sequence)
            sequence.charged = 0  # if it comes back, that is its tenant's doing

    def _uncount(self, sequence: Sequence) -> None:
        if sequence.counted:
            sequence.counted = False
            request = sequence.request
            self.bounds.give_back(request.tenant, 1, request.most_tokens(self._config.max_model_len))

    def _retire(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        sequence.tenant.running -= 1
        self._blocks.release(sequence.blocks)
        self._free_slots.append(sequence.slot)
        sequence.blocks = []
        sequence.slot = -1

    def _step(self, batch: Batch, drafts: Drafts, decoding: int, decoded: int) -> Step:
        self.steps += 1
        self._in_flight += 1
        step = make_step(self.steps, batch, drafts, self._admissions, self._updates, decoding, decoded)
        self._pacer.started(step.prompt_tokens)
        return step
