"""The scheduler against a model that reads every token through the block tables, in thousands of random steps."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from workers.kv_cache import BlockManager
from workers.pacing import Pacer
from workers.request import EngineConfig, FinishReason, Output, Request, SamplingParams
from workers.scheduler import Scheduler, Step
from workers.step_plan import StepPlan

BLOCK, VOCAB = 4, 11


def next_token(context: list[int]) -> int:
    """Depends on every token and on the order."""
    value = 7
    for token in context:
        value = (value * 31 + token + 1) % 1_000_003
    return value % VOCAB


def alone(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class TokenMemory:
    """Keeps tokens where a model would keep keys and values; knows nothing but the plans it is sent."""

    def __init__(self, num_blocks: int, max_running: int) -> None:
        self.cells = [[-1] * BLOCK for _ in range(num_blocks)]
        self.tables: list[dict[int, int]] = [{} for _ in range(max_running)]

    def run(self, sent: StepPlan) -> list[int]:
        plan = StepPlan.unpack(sent.pack())
        for slot, index, block in plan.block_updates.tolist():
            self.tables[slot][index] = block
        tokens = deque(plan.tokens.tolist())
        sampled = []
        for slot, start, count, samples in plan.rows.tolist():
            table = self.tables[slot]
            for position in range(start, start + count):
                self.cells[table[position // BLOCK]][position % BLOCK] = tokens.popleft()
            if samples:
                context = [self.cells[table[p // BLOCK]][p % BLOCK] for p in range(start + count)]
                sampled.append(next_token(context))
        assert not tokens
        return sampled


@dataclass
class Replica:
    """A scheduler, its blocks, and `micro_batches` steps in flight."""

    micro_batches: int
    num_blocks: int = 40
    config: EngineConfig = field(default_factory=lambda: EngineConfig(max_running=6, max_batch_tokens=13))
    outputs: dict[int, list[Output]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = BlockManager(self.num_blocks, BLOCK)
        self.pacer = Pacer(self.config.max_stretch, self.micro_batches)
        self.scheduler = Scheduler(self.config, self.blocks, self.pacer, self.micro_batches)
        self.memory = TokenMemory(self.num_blocks, self.config.max_running)
        self.in_flight: deque[tuple[Step, list[int], float]] = deque()
        self.now = 0.0

    def add(self, key: int, prompt: list[int], count: int, priority: int = 0) -> None:
        sampling = SamplingParams(max_tokens=count, ignore_eos=True)
        self.scheduler.add(Request(key, prompt, len(prompt), sampling, priority))

    def cancel(self, key: int) -> None:
        self._keep([output for output in (self.scheduler.cancel(key),) if output is not None])

    def launch(self) -> Step | None:
        step = self.scheduler.schedule()
        if step is not None:
            self.in_flight.append((step, self.memory.run(step.plan), self.now))
        return step

    def finish(self) -> None:
        step, tokens, started = self.in_flight.popleft()
        self.now += 0.01 + 0.001 * len(step.plan.tokens)
        self.pacer.finished(step.decoding, step.prompt_tokens, started, self.now)
        self._keep(self.scheduler.commit(step, tokens, [None] * len(tokens)))
        self.blocks.check()

    def advance(self) -> None:
        while len(self.in_flight) < self.micro_batches and self.launch():
            pass
        if self.in_flight:
            self.finish()

    def run_dry(self) -> None:
        while self.scheduler.running or self.scheduler.waiting or self.in_flight:
            before = self.scheduler.steps, len(self.in_flight)
            self.advance()
            assert (self.scheduler.steps, len(self.in_flight)) != before, "nothing moves"

    def tokens_of(self, key: int) -> list[int]:
        return [token for output in self.outputs[key] for token in output.token_ids]

    def _keep(self, outputs: list[Output]) -> None:
        for output in outputs:
            own = self.outputs.setdefault(output.key, [])
            assert output.first_index == sum(len(earlier.token_ids) for earlier in own)
            assert not own or own[-1].finish_reason is None
            own.append(output)


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("num_blocks", [16, 40])
@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_gets_its_own_tokens_whatever_happens_around_it(
    micro_batches: int, num_blocks: int, seed: int
) -> None:
    rng = random.Random(f"{micro_batches} {num_blocks} {seed}")
    replica = Replica(micro_batches, num_blocks)
    asked: dict[int, tuple[list[int], int]] = {}
    cancelled = set()
    beginnings = [[rng.randrange(VOCAB) for _ in range(12)] for _ in range(2)]
    for key in range(120):
        own = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 25))]
        prompt = (rng.choice(beginnings) if rng.random() < 0.5 else []) + own
        asked[key] = prompt, rng.randrange(1, 28)
        replica.add(key, *asked[key], priority=rng.randrange(2))
        if rng.random() < 0.2:
            cancelled.add(unlucky := rng.randrange(key + 1))
            replica.cancel(unlucky)
        for _ in range(rng.randrange(6)):
            replica.advance()
    replica.run_dry()
    for key, (prompt, count) in asked.items():
        tokens, finish = replica.tokens_of(key), replica.outputs[key][-1].finish_reason
        assert finish is FinishReason.LENGTH or key in cancelled
        assert tokens == alone(prompt, count if finish is FinishReason.LENGTH else len(tokens))
    assert replica.blocks.free == num_blocks


def test_a_long_prompt_is_read_in_small_pieces_beside_decodes_and_in_large_ones_alone() -> None:
    replica = Replica(1, 400, EngineConfig(max_running=4, max_batch_tokens=256))
    prompt = [number % VOCAB for number in range(1000)]
    replica.add(0, prompt, 1)
    largest = replica.launch()
    assert largest is not None
    assert largest.prompt_tokens == 256
    replica.finish()
    replica.run_dry()
    replica.add(1, [1, 2, 3], 60)
    for _ in range(10):
        replica.advance()
    replica.add(2, prompt[::-1], 1)
    pieces = []
    while 2 not in replica.outputs and len(pieces) < 30:
        step = replica.launch()
        assert step is not None
        assert step.sampled, "the stream goes on in every step"
        pieces.append(step.prompt_tokens)
        replica.finish()
    assert 4 <= max(pieces) <= 40
    replica.run_dry()
    assert replica.tokens_of(2) == alone(prompt[::-1], 1)


def test_prompts_progress_where_decodes_would_fill_every_step() -> None:
    replica = Replica(1, config=EngineConfig(max_running=8, max_batch_tokens=4))
    for key in range(6):
        replica.add(key, [key], 20)
    for _ in range(4):
        replica.advance()
    replica.add(9, [1] * 9, 1, priority=1)
    for _ in range(12):
        replica.advance()
    assert replica.tokens_of(9) == alone([1] * 9, 1)


def test_cancelled_sequences_leave_the_queue_without_being_looked_for() -> None:
    replica = Replica(1)
    for key in range(100):
        replica.add(key, [1, 2], 1)
    for key in range(99):
        replica.cancel(key)
    assert replica.scheduler.waiting == 1
    replica.run_dry()
    assert replica.tokens_of(99) == alone([1, 2], 1)
    assert {own[-1].finish_reason for key, own in replica.outputs.items() if key != 99} == {FinishReason.CANCELLED}


def test_many_waiting_sequences_do_not_take_a_stage_its_share() -> None:
    replica = Replica(2, config=EngineConfig(max_running=4))
    for key in range(50):
        replica.add(key, [key % VOCAB], 5)
    first = replica.launch()
    assert first is not None
    assert len(first.sequences) == 2
