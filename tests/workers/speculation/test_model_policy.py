"""How many guesses a model makes: as many as raise the tokens a second, within its means."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import pytest

from tests.workers.token_replica import Replica, alone, mostly_right
from workers.request import EngineConfig
from workers.sequence import Sequence
from workers.speculation.acceptance import MOST
from workers.speculation.depth import guesses_worth
from workers.speculation.model_speculation import ModelSpeculation
from workers.speculation.purse import Purse
from workers.step import Drafts


def test_guesses_go_on_as_long_as_they_raise_the_tokens_a_second() -> None:
    def speed(rate: float, guesses: int) -> float:
        return sum(rate**depth for depth in range(guesses + 1)) / (1.0 + guesses * (0.1 + 0.02))

    for rate in (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        (count,) = guesses_worth([rate], [MOST], 100, step_s=1.0, row_s=0.02, pass_s=0.1)
        assert count == max(range(MOST + 1), key=lambda guesses: speed(rate, guesses))


def test_a_pass_keeps_all_sequences_waiting_and_a_row_has_to_pay_for_itself() -> None:
    assert guesses_worth([0.5] * 4, [MOST] * 4, 100, 1.0, 0.01, 0.4) == [1] * 4
    assert guesses_worth([0.5] + [0.02] * 3, [MOST] * 4, 100, 1.0, 0.01, 0.4) == [0] * 4
    good, bad, ending = guesses_worth([0.9, 0.02, 0.9], [MOST, MOST, 2], 100, 1.0, 0.05, 0.1)
    assert good > 2
    assert (bad, ending) == (0, 2)
    assert sum(guesses_worth([0.9] * 4, [MOST] * 4, 10, 1.0, 0.01, 0.1)) <= 10


def test_what_does_not_pay_may_take_a_small_share_of_the_time() -> None:
    purse, spent = Purse(), 0.0
    for _ in range(10_000):
        purse.earn(0.01)
        if not purse.empty:
            purse.spend(0.02)
            spent += 0.02
    assert 0.02 * 100 < spent < 0.03 * 100
    purse.saved(1.0)
    assert not purse.empty


class Guesser:
    """Guesses with `mostly_right`, or never right, and counts."""

    def __init__(self, right: bool) -> None:
        self.right = right
        self.guesses = 0

    def ready(self, sequences: Seq[Sequence]) -> list[Sequence]:
        return list(sequences)

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> Drafts:
        self.guesses += sum(count for _, count in wanted)
        if self.right:
            return {sequence.slot: mostly_right(sequence, count) for sequence, count in wanted}
        return {s.slot: [(token + 1) % 11 for token in alone(s.tokens, count)] for s, count in wanted}


@pytest.mark.parametrize("right", [True, False])
def test_a_replica_guesses_as_long_as_that_pays(right: bool) -> None:
    guesser = Guesser(right)
    config = EngineConfig(max_running=4)
    replica = Replica(1, 200, config)
    replica.speculation = speculation = ModelSpeculation(config, guesser)
    replica.scheduler._speculation = speculation
    for key in range(2):
        replica.add(key, [key, 3, 4], 150)
    replica.run_dry()
    for key in range(2):
        assert replica.tokens_of(key) == alone([key, 3, 4], 150)
    assert speculation.drafted == guesser.guesses
    if right:
        assert speculation.accepted > 100
        assert replica.scheduler.steps < 110
    else:
        assert speculation.accepted == 0
        assert 0 < speculation.drafted < 40
