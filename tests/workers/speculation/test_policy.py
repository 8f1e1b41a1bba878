"""How many guesses are made: as many as are worth the time that they take."""

from __future__ import annotations

import pytest

from tests.workers.token_replica import VOCAB, Replica, alone, mostly_right
from workers.request import EngineConfig
from workers.sequence import Sequence
from workers.speculation.acceptance import MOST, Acceptance
from workers.speculation.row_price import RowPrice


def after(right: int, wrong: int) -> Acceptance:
    acceptance = Acceptance()
    for _ in range(wrong):
        acceptance.learn(0, wrong=True)
    for _ in range(right):
        acceptance.learn(1, wrong=False)
    return acceptance


def test_right_guesses_make_drafts_longer_and_wrong_ones_end_them() -> None:
    assert after(right=60, wrong=0).worth(0.05) == MOST
    assert 2 <= Acceptance().worth(0.05) < MOST
    assert after(right=0, wrong=40).worth(0.05) == 0


def test_dearer_rows_make_drafts_shorter() -> None:
    acceptance = after(right=10, wrong=0)
    assert [acceptance.worth(price) for price in (0.01, 0.1, 0.3, 0.6, 0.9)] == [15, 12, 6, 2, 0]


def test_a_sequence_that_guesses_badly_is_tried_again_from_time_to_time() -> None:
    acceptance = after(right=0, wrong=40)
    tries = [acceptance.worth(0.25) for _ in range(40)]
    assert tries == [0] * 31 + [1] * 9, "until there is something to guess"
    acceptance.learn(0, wrong=True)
    assert [acceptance.worth(0.25) for _ in range(31)] == [0] * 31
    acceptance.learn(0, wrong=True)
    assert [acceptance.worth(0.75) for _ in range(96)] == [0] * 95 + [1], "the dearer, the less often"


def test_a_row_costs_what_it_is_measured_to_cost() -> None:
    price = RowPrice()
    assert price.of(4) is None, "a step without guesses comes first"
    price.learn(4, 0, 0, 0.010)
    for _ in range(40):
        price.learn(4, 5, 0, 0.015)
    assert price.of(4) == pytest.approx(4 * 0.1, rel=0.01)
    price.learn(4, 5, 100, 1.0)
    price.learn(4, 5, 0, 1.0)  # the step after one with a prompt
    assert price.of(4) == pytest.approx(4 * 0.1, rel=0.01)
    assert price.of(5) is None
    for _ in range(24):
        price.learn(4, 5, 0, 0.015)
    assert price.of(4) is None, "what a step takes without guesses is measured anew"


def counted(propose: list[int], sequences: int, config: EngineConfig) -> Replica:
    """A replica after some steps, which notes in `propose` how long drafts might be."""

    def asked(sequence: Sequence, most: int) -> list[int]:
        propose.append(most)
        return mostly_right(sequence, most)

    replica = Replica(1, 200, config, propose=asked)
    for key in range(sequences):
        replica.add(key, [key % VOCAB, 3, 4], 60)
    replica.run_dry()
    for key in range(sequences):
        assert replica.tokens_of(key) == alone([key % VOCAB, 3, 4], 60)
    return replica


def test_guesses_are_right_and_so_there_are_fewer_steps() -> None:
    replica = counted([], 1, EngineConfig(max_running=4))
    assert replica.scheduler.steps < 30
    assert replica.speculation is not None
    assert replica.speculation.accepted > 30


def test_a_full_batch_has_no_guesses() -> None:
    asked: list[int] = []
    counted(asked, 32, EngineConfig(max_running=32))
    assert asked == []


def test_tenants_pay_for_guessed_tokens_what_they_pay_for_others() -> None:
    replica = Replica(1, propose=mostly_right)
    plain = Replica(1)
    for one in (replica, plain):
        one.add(0, [1, 2, 3, 4], 40)
        one.run_dry()
    paid, owed = (one.scheduler._tenants.get("", 1.0).counter for one in (replica, plain))
    assert replica.scheduler.steps < plain.scheduler.steps
    assert paid == owed
