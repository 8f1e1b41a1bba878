"""How many prompt tokens a step may take, learnt from steps of known length."""

from __future__ import annotations

import pytest

from workers.pacing import MIN_CHUNK, Pacer

TOKEN_S, DECODE_S = 0.001, 0.010


class Clock:
    """Runs one step after the other, each as long as its content: 10 ms, and 1 ms for each prompt token."""

    def __init__(self, pacer: Pacer) -> None:
        self.pacer, self.now = pacer, 100.0

    def step(self, decoding: int, prompt_tokens: int, slower: float = 1.0) -> float:
        """Returns the seconds that it took."""
        self.pacer.started(prompt_tokens)
        seconds = slower * (prompt_tokens * TOKEN_S + (DECODE_S if decoding else 0))
        self.pacer.finished(decoding, decoding, prompt_tokens, self.now, self.now + seconds)
        self.now += seconds
        return seconds


@pytest.fixture
def clock() -> Clock:
    clock = Clock(Pacer(2.5, micro_batches=1))
    clock.step(0, 512)
    return clock


def test_nothing_is_bounded_while_nothing_decodes(clock: Clock) -> None:
    assert clock.pacer.prompt_tokens(decoding=0, prompts=3) is None


def test_a_step_without_prompts_is_measured_before_prompts_join(clock: Clock) -> None:
    assert clock.pacer.prompt_tokens(4, 1) == 0
    clock.step(4, 0)
    assert clock.pacer.prompt_tokens(4, 1) == 15  # 10 ms for the decodes, 15 for the prompt


def test_a_rush_of_prompts_may_take_more(clock: Clock) -> None:
    clock.step(4, 0)
    assert clock.pacer.prompt_tokens(4, 10) == 150


def test_with_an_objective_prompts_get_what_a_step_has_left_of_it() -> None:
    clock = Clock(Pacer(2.5, micro_batches=1, tpot_s=0.05))
    clock.step(0, 512)
    assert clock.pacer.prompt_tokens(4, 1) == 0
    clock.step(4, 0)
    # 45 ms, less 10 for the decodes, however many prompts there are
    assert clock.pacer.prompt_tokens(4, 1) == pytest.approx(35, abs=1)
    assert clock.pacer.prompt_tokens(4, 10) == pytest.approx(35, abs=1)


def test_decodes_that_need_all_of_the_objective_leave_prompts_the_least() -> None:
    clock = Clock(Pacer(2.5, micro_batches=1, tpot_s=0.005))
    clock.step(0, 512)
    clock.step(4, 0)
    assert clock.pacer.prompt_tokens(4, 1) == MIN_CHUNK


def test_prompts_go_on_where_the_bound_leaves_almost_nothing() -> None:
    clock = Clock(Pacer(1.001, micro_batches=1))
    clock.step(0, 512)
    clock.step(1, 0)
    assert clock.pacer.prompt_tokens(1, 1) == MIN_CHUNK


def test_steps_stay_within_the_bound_as_the_prompt_gets_longer(clock: Clock) -> None:
    clock.step(4, 0)
    for number in range(1000):
        allowed = clock.pacer.prompt_tokens(4, 1)
        assert allowed is not None
        # Tokens late in the prompt cost three times as much, as they look at more.
        assert clock.step(4, allowed, slower=1 + 2 * number / 1000) <= 3 * DECODE_S * (1 + 2 * number / 1000)


def test_one_stall_changes_the_share_of_prompts_little(clock: Clock) -> None:
    for _ in range(20):
        clock.step(4, 0)
    clock.step(4, 0, slower=100)
    allowed = clock.pacer.prompt_tokens(4, 1)
    assert allowed is not None
    assert allowed <= 20


def test_a_step_beside_a_prompt_in_another_stage_says_nothing_about_decoding() -> None:
    pacer = Pacer(2.5, micro_batches=2)
    pacer.started(0)
    pacer.started(64)
    pacer.finished(1, 1, 0, start=0.0, end=0.5)
    assert pacer.prompt_tokens(1, 1) == 0
    pacer.finished(1, 1, 64, start=0.1, end=0.6)
    pacer.started(0)
    pacer.finished(1, 1, 0, start=0.6, end=0.7)
    assert pacer.prompt_tokens(1, 1) == MIN_CHUNK
