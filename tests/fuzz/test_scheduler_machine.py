"""The scheduler and its blocks under any interleaving of what may happen to them."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.fuzz.examples import examples
from tests.workers.token_replica import BLOCK, VOCAB, Replica, alone, mostly_right
from workers.request import EngineConfig, FinishReason, Output, Request, SamplingParams
from workers.scheduler import Step

_BEGINNINGS = [[1] * 9, [1, 2, 3, 4] * 4, [1, 2, 3, 4, 1, 2, 3, 4, 5]]


class SchedulerMachine(RuleBasedStateMachine):
    """Steps are computed by a memory that knows nothing but block tables, so a block that two sequences write, or one
    that is reused too early, shows as a wrong token."""

    @initialize(
        flight=st.sampled_from([(1, False), (2, False), (3, False), (1, True), (1, True)]),
        blocks=st.integers(8, 30),
        running=st.integers(1, 5),
        budget=st.integers(2, 20),
        guesses=st.booleans(),
    )
    def start(self, flight: tuple[int, bool], blocks: int, running: int, budget: int, guesses: bool) -> None:
        micro, look_ahead = flight
        config = EngineConfig(max_running=running, max_batch_tokens=budget, max_model_len=BLOCK * blocks)
        propose = mostly_right if guesses and not look_ahead else None
        self.replica = Replica(micro, blocks, config, propose=propose, look_ahead=look_ahead)
        self.asked: dict[int, tuple[list[int], int, int | None]] = {}  # prompt, tokens, and one that stops them
        self.cancelled: set[int] = set()
        self.parked: set[int] = set()

    @rule(
        beginning=st.sampled_from([[], *_BEGINNINGS]),
        own=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=10),
        count=st.integers(1, 12),
        begun=st.integers(0, 6),
        priority=st.integers(-1, 1),
        penalty=st.sampled_from([0.0, 0.0, 0.5]),
        stop=st.sampled_from([None, None, *range(VOCAB)]),
    )
    def add(
        self,
        beginning: list[int],
        own: list[int],
        count: int,
        begun: int,
        priority: int,
        penalty: float,
        stop: int | None,
    ) -> None:
        """A prompt, perhaps one that begins like others, perhaps of a stream that began elsewhere."""
        self._add(beginning + own, count, begun, priority, penalty, stop)

    @precondition(lambda self: self.asked)
    @rule(choices=st.data(), less=st.integers(0, 3))
    def add_again(self, choices: st.DataObject, less: int) -> None:
        """A prompt that was there before, and all that came of it: much of it may be cached, up to its last token."""
        prompt, count, _ = choices.draw(st.sampled_from(list(self.asked.values())))
        whole = prompt + alone(prompt, count)
        self._add(whole[: max(1, len(whole) // BLOCK * BLOCK - less)], count, 0, 0, 0.0, None)

    def _add(self, prompt: list[int], count: int, begun: int, priority: int, penalty: float, stop: int | None) -> None:
        if len(prompt) + count > BLOCK * self.replica.num_blocks - 1:
            return
        key = len(self.asked)
        self.asked[key] = prompt, count, stop
        had = self._until_stop(alone(prompt, min(begun, count - 1)), stop)
        if had and had[-1] == stop:
            had.pop()
        if had:
            self.replica.outputs[key] = [Output(key, 0, tuple(had))]
        stops = () if stop is None else (stop,)
        sampling = SamplingParams(max_tokens=count, ignore_eos=True, stop_token_ids=stops, presence_penalty=penalty)
        tenant = f"tenant {key % 3}"
        request = Request(key, prompt + had, len(prompt), sampling, priority, tenant=tenant, weight=1.0 + key % 3)
        assert self.replica.scheduler.reserve(request)
        self.replica.scheduler.add(request)

    @precondition(lambda self: len(self.replica.in_flight) < self.replica.scheduler.most_in_flight)
    @rule()
    def launch(self) -> None:
        self._launch()

    @precondition(lambda self: self.replica.in_flight)
    @rule()
    def finish(self) -> None:
        self.replica.finish()

    @rule(steps=st.integers(1, 8))
    def advance(self, steps: int) -> None:
        for _ in range(steps):
            while len(self.replica.in_flight) < self.replica.scheduler.most_in_flight and self._launch():
                pass
            if self.replica.in_flight:
                self.replica.finish()

    @precondition(lambda self: self.asked)
    @rule(choices=st.data())
    def cancel(self, choices: st.DataObject) -> None:
        key = choices.draw(st.sampled_from(sorted(self.asked)))
        if not self._ended(key):
            self.cancelled.add(key)
        self.replica.cancel(key)

    @precondition(lambda self: self.asked)
    @rule(choices=st.data())
    def park(self, choices: st.DataObject) -> None:
        """Its reader does not read; sometimes the same one twice."""
        key = choices.draw(st.sampled_from(sorted(self.asked)))
        self.replica.scheduler.park(key)
        self.parked.add(key)

    @precondition(lambda self: self.parked)
    @rule(choices=st.data())
    def unpark(self, choices: st.DataObject) -> None:
        key = choices.draw(st.sampled_from(sorted(self.parked)))
        self.replica.scheduler.unpark(key)
        self.parked.discard(key)

    @invariant()
    def blocks_are_owned_once_or_shared_by_prefix(self) -> None:
        blocks, running = self.replica.blocks, self.replica.scheduler._running
        held = Counter(block for sequence in running for block in sequence.blocks)
        assert held == Counter({block: count for block, count in enumerate(blocks._references) if count})
        assert blocks.free + len(held) == blocks.num_blocks
        assert all(len(set(sequence.blocks)) == len(sequence.blocks) for sequence in running)
        blocks.check()

    @invariant()
    def slots_are_unique(self) -> None:
        scheduler = self.replica.scheduler
        slots = [sequence.slot for sequence in scheduler._running] + scheduler._free_slots
        assert sorted(slots) == list(range(self.replica.config.max_running))

    @invariant()
    def every_sequence_runs_waits_rests_or_has_ended(self) -> None:
        scheduler = self.replica.scheduler
        lingering = sum(sequence.ended for sequence in scheduler._running)  # until the step they are in has ended
        alive = sum(not self._ended(key) for key in self.asked)
        resting = sum(sequence.parked and sequence.slot < 0 for sequence in scheduler._by_key.values())
        assert scheduler.running - lingering + scheduler.waiting + resting == alive

    def teardown(self) -> None:
        for key in self.parked:
            self.replica.scheduler.unpark(key)
        self.replica.run_dry()
        for key, (prompt, count, stop) in self.asked.items():
            finish, tokens = self.replica.outputs[key][-1].finish_reason, self.replica.tokens_of(key)
            whole = self._until_stop(alone(prompt, count), stop)
            if key in self.cancelled:
                assert finish is FinishReason.CANCELLED
                assert tokens == whole[: len(tokens)]
            else:
                assert finish is (FinishReason.STOP if whole[-1] == stop else FinishReason.LENGTH)
                assert tokens == whole
        assert self.replica.blocks.free == self.replica.num_blocks

    @staticmethod
    def _until_stop(tokens: list[int], stop: int | None) -> list[int]:
        return tokens[: tokens.index(stop) + 1] if stop in tokens else tokens

    def _ended(self, key: int) -> bool:
        return key in self.replica.outputs and self.replica.outputs[key][-1].finish_reason is not None

    def _launch(self) -> Step | None:
        """A step, of which no row is empty and none writes a block that another sequence also reads or writes."""
        step = self.replica.launch()
        references = self.replica.blocks._references
        for slot, start, count, _ in [] if step is None else step.plan.rows.tolist():
            table = self.replica.memory.tables[slot]
            assert count > 0
            assert all(references[table[position // BLOCK]] == 1 for position in range(start, start + count))
        return step


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = examples(60, stateful_step_count=40)
