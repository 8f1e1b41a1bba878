from __future__ import annotations

import pytest

from cluster.gateway.admission import Admission, Full
from cluster.gateway.caller import Caller

_A, _B = Caller("a"), Caller("b")


def test_a_request_holds_the_tokens_it_may_need_until_it_ends() -> None:
    admission = Admission(10)
    admission.room_for(2, 500)
    with admission.place(_A, 4) as place:
        place.settle(700)
        assert (admission.bounds.held_requests, admission.bounds.held_tokens) == (4, 700)
        with (
            pytest.raises(Full, match=r"4 sequences of 700 tokens .* up to 10 of 1000"),
            admission.place(_A, 1) as other,
        ):
            other.settle(400)
        assert (admission.bounds.held_requests, admission.bounds.held_tokens) == (4, 700)
    assert (admission.bounds.held_requests, admission.bounds.held_tokens, admission.requests) == (0, 0, 0)


def test_replicas_that_are_lost_take_their_room_along_save_the_last() -> None:
    admission = Admission(10)
    admission.room_for(2, 500)
    admission.room_for(1, 500)
    admission.room_for(0, 500)
    assert admission.bounds.tokens == 500


def test_a_tenants_flood_leaves_room_for_others() -> None:
    admission = Admission(4)
    held = [admission.place(_A, 1) for _ in range(4)]
    for place in held:
        place.__enter__()
    with pytest.raises(Full), admission.place(_A, 1):
        pass
    with admission.place(_B, 2), pytest.raises(Full), admission.place(_B, 1):
        pass
    for place in held:
        place.__exit__(None, None, None)
    assert admission.requests == 0


def test_the_more_are_sent_away_the_later_each_is_told_to_come_again() -> None:
    admission = Admission(1)
    hints = [admission.retry_after_ms() for _ in range(100)]
    assert hints == sorted(hints)
    assert 50 <= hints[0] < hints[10] < hints[-1] <= 30_000
    for _ in range(200):
        with admission.place(_A, 1):
            pass
    assert admission.retry_after_ms() == 50, "requests end all the time, and nobody else was sent away"
