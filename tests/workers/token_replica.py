"""A scheduler in front of a model that reads every token through the block tables."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from workers.kv_cache import BlockManager
from workers.pacing import Pacer
from workers.request import EngineConfig, Output, Request, SamplingParams
from workers.scheduler import Scheduler
from workers.sequence import Sequence
from workers.speculation.speculation import LookupSpeculation, Propose
from workers.step import Step
from workers.step_plan import LAST, StepPlan

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


def mostly_right(sequence: Sequence, most: int) -> list[int]:
    """Guesses that are wrong now and then."""
    draft = alone(sequence.tokens, most)
    return [token if (len(sequence.tokens) + number) % 7 else (token + 1) % VOCAB for number, token in enumerate(draft)]


class TokenMemory:
    """Keeps tokens where a model would keep keys and values; knows nothing but the plans it is sent."""

    def __init__(self, num_blocks: int, max_running: int) -> None:
        self.cells = [[-1] * BLOCK for _ in range(num_blocks)]
        self.tables: list[dict[int, int]] = [{} for _ in range(max_running)]
        self.last = [-1] * max_running

    def run(self, sent: StepPlan) -> list[int]:
        plan = StepPlan.unpack(sent.pack())
        for slot, index, block in plan.block_updates.tolist():
            self.tables[slot][index] = block
        tokens = deque(plan.tokens.tolist())
        sampled = []
        for slot, start, count, samples in plan.rows.tolist():
            table = self.tables[slot]
            for position in range(start, start + count):
                token = tokens.popleft()
                self.cells[table[position // BLOCK]][position % BLOCK] = self.last[slot] if token == LAST else token
            context = [self.cells[table[p // BLOCK]][p % BLOCK] for p in range(start + count)]
            sampled += [next_token(context[: len(context) - after]) for after in reversed(range(samples))]
            if samples:
                self.last[slot] = sampled[-1]
        assert not tokens
        return sampled


@dataclass
class Replica:
    """A scheduler, its blocks, and `micro_batches` steps in flight. Guesses are as good as `propose` makes them."""

    micro_batches: int
    num_blocks: int = 40
    config: EngineConfig = field(default_factory=lambda: EngineConfig(max_running=6, max_batch_tokens=13))
    outputs: dict[int, list[Output]] = field(default_factory=dict)
    propose: Propose | None = None
    look_ahead: bool = False

    def __post_init__(self) -> None:
        self.blocks = BlockManager(self.num_blocks, BLOCK)
        self.pacer = Pacer(self.config.max_stretch, self.micro_batches, self.config.objectives.tpot_s)
        self.speculation = None if self.propose is None else LookupSpeculation(self.config, self.propose)
        self.scheduler = Scheduler(
            self.config, self.blocks, self.pacer, self.micro_batches, self.speculation, self.look_ahead
        )
        self.memory = TokenMemory(self.num_blocks, self.config.max_running)
        self.in_flight: deque[tuple[Step, list[int], float]] = deque()
        self.now = 0.0

    def add(self, key: int, prompt: list[int], count: int, priority: int = 0, **options: Any) -> bool:
        sampling = SamplingParams(max_tokens=count, ignore_eos=True)
        request = Request(key, prompt, len(prompt), sampling, priority, **options)
        if room := self.scheduler.reserve(request):
            self.scheduler.add(request)
        return room

    def cancel(self, key: int) -> None:
        self._keep([output for output in (self.scheduler.cancel(key),) if output is not None])

    def launch(self) -> Step | None:
        step = self.scheduler.schedule()
        self._keep(self.scheduler.take_expired())
        if step is not None:
            self.in_flight.append((step, self.memory.run(step.plan), self.now))
        return step

    def finish(self) -> None:
        step, tokens, started = self.in_flight.popleft()
        self.now += 0.01 + 0.001 * len(step.plan.tokens)
        seconds = self.pacer.finished(step.decoding, step.decoded, step.prompt_tokens, started, self.now, step.drafted)
        if self.speculation is not None:
            self.speculation.finished(len(step.sampled), step.drafted, step.prompt_tokens, seconds)
        self._keep(self.scheduler.commit(step, tokens, [None] * len(tokens)))
        self.blocks.check()

    def fill(self) -> None:
        while len(self.in_flight) < self.scheduler.most_in_flight and self.launch():
            pass

    def advance(self) -> None:
        self.fill()
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
