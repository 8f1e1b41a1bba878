"""The scheduler against a model that reads every token through the block tables, in thousands of random steps."""

from __future__ import annotations

import random
from time import monotonic, sleep
from typing import Any

import pytest

from tests.workers.token_replica import VOCAB, Replica, alone, mostly_right
from workers.objectives import Objectives
from workers.request import EngineConfig, FinishReason


@pytest.mark.parametrize(
    ("micro_batches", "options"),
    [
        *((number, {"propose": propose}) for number in (1, 2, 3) for propose in (None, mostly_right)),
        (1, {"look_ahead": True}),
    ],
)
@pytest.mark.parametrize("num_blocks", [16, 40])
@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_gets_its_own_tokens_whatever_happens_around_it(
    micro_batches: int, options: dict[str, Any], num_blocks: int, seed: int
) -> None:
    rng = random.Random(f"{micro_batches} {num_blocks} {seed}")
    replica = Replica(micro_batches, num_blocks, **options)
    asked: dict[int, tuple[list[int], int]] = {}
    cancelled = set()
    beginnings = [[rng.randrange(VOCAB) for _ in range(12)] for _ in range(2)]
    for key in range(120):
        own = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 25))]
        prompt = (rng.choice(beginnings) if rng.random() < 0.5 else []) + own
        asked[key] = prompt, rng.randrange(1, 28)
        replica.add(
            key, *asked[key], priority=rng.randrange(2), tenant=rng.choice("abc"), weight=rng.choice([1.0, 3.0])
        )
        if rng.random() < 0.2:
            cancelled.add(unlucky := rng.randrange(key + 1))
            replica.cancel(unlucky)
        if rng.random() < 0.3:
            replica.scheduler.park(rng.randrange(key + 1))
        replica.scheduler.unpark(rng.randrange(key + 1))
        for _ in range(rng.randrange(6)):
            replica.advance()
    replica.run_dry()
    assert replica.scheduler.parked > 0
    for key in asked:
        replica.scheduler.unpark(key)
    replica.run_dry()
    assert replica.scheduler.parked == 0
    for key, (prompt, count) in asked.items():
        tokens, finish = replica.tokens_of(key), replica.outputs[key][-1].finish_reason
        assert finish is FinishReason.LENGTH or key in cancelled
        assert tokens == alone(prompt, count if finish is FinishReason.LENGTH else len(tokens))
    assert replica.blocks.free == num_blocks
    if replica.speculation is not None and num_blocks > 16:
        assert 0 < replica.speculation.accepted < replica.speculation.drafted


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


def test_one_step_more_is_in_flight_while_prompts_are_read() -> None:
    replica = Replica(2, 400, EngineConfig(max_running=8, max_batch_tokens=30))
    prompt = [number % VOCAB for number in range(100)]
    for key in range(4):
        replica.add(key, prompt, count=20)
    replica.fill()
    # In equal parts, so that no stage waits for the others.
    assert [step.prompt_tokens for step, *_ in replica.in_flight] == [10, 10, 10]
    most = 0
    while replica.in_flight:
        replica.finish()
        replica.fill()
        if not any(step.prompt_tokens for step, *_ in replica.in_flight):
            most = max(most, len(replica.in_flight))
    assert most == 2
    assert all(replica.tokens_of(key) == alone(prompt, 20) for key in range(4))


def test_a_parked_sequence_gives_back_all_it_has_and_goes_on_with_the_token_after_its_last() -> None:
    replica = Replica(1)
    replica.add(0, [1, 2, 3], 30)
    for _ in range(8):
        replica.advance()
    before = len(replica.tokens_of(0))
    replica.scheduler.park(0)
    assert replica.blocks.free == replica.num_blocks
    assert (replica.scheduler.running, replica.scheduler.waiting, replica.scheduler.parked) == (0, 0, 1)
    replica.add(1, [4, 5], 10)
    replica.run_dry()
    assert replica.tokens_of(1) == alone([4, 5], 10)
    assert len(replica.tokens_of(0)) == before
    replica.scheduler.unpark(0)
    replica.run_dry()
    assert replica.tokens_of(0) == alone([1, 2, 3], 30)


def test_a_request_whose_deadline_cannot_be_met_is_dropped_without_being_read() -> None:
    replica = Replica(1)
    replica.add(0, [1, 2], 10, deadline=monotonic() - 1)
    replica.add(1, [3, 4] * 6, 10, deadline=monotonic() + 60)
    step = replica.launch()
    assert step is not None
    assert [sequence.request.key for sequence in step.sequences] == [1]
    assert replica.outputs[0][-1].finish_reason is FinishReason.EXPIRED
    replica.finish()
    replica.add(2, [5] * 30, 10, deadline=monotonic() + 0.01)  # reading takes 0.001 s a token here
    replica.run_dry()
    assert replica.outputs[2][-1].finish_reason is FinishReason.EXPIRED
    assert replica.tokens_of(1) == alone([3, 4] * 6, 10)


def test_who_waited_too_long_for_the_objective_is_shed_and_who_has_begun_is_not() -> None:
    config = EngineConfig(max_running=1, max_batch_tokens=13, objectives=Objectives(ttft_s=0.05))
    replica = Replica(1, config=config)
    replica.add(0, [1, 2] * 3, 10)
    replica.advance()  # from now on, reading takes 2.7 ms a token
    replica.add(1, [3, 4], 10)
    replica.add(2, [5, 6] * 60, 5)  # too long for the objective in any case: it is answered when it can be
    sleep(0.06)
    replica.scheduler.park(0)
    replica.advance()
    replica.scheduler.unpark(0)
    replica.run_dry()
    assert replica.outputs[1][-1].finish_reason is FinishReason.SHED
    assert replica.tokens_of(1) == []
    assert replica.tokens_of(0) == alone([1, 2] * 3, 10)
    assert replica.tokens_of(2) == alone([5, 6] * 60, 5)
