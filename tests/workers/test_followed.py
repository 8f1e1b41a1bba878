"""What is noted of sequences that are traced, in front of the real scheduler."""

from __future__ import annotations

from tests.workers.token_replica import Replica
from workers.observation.followed import Followed, Follower
from workers.request import FinishReason, Output

_TRACED = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


def _run(replica: Replica, follower: Follower) -> None:
    """As `Engine` calls the follower."""
    seen: dict[int, int] = {}
    while replica.scheduler.running or replica.scheduler.waiting:
        step = replica.launch()
        assert step is not None
        follower.launched(step)
        replica.finish()
        news: list[Output] = []
        for key, outputs in replica.outputs.items():
            news += outputs[seen.get(key, 0) :]
            seen[key] = len(outputs)
        follower.noted(news)


def test_a_traced_sequence_has_its_times_and_the_others_are_not_followed() -> None:
    told: list[Followed] = []
    follower = Follower(told.append)
    replica = Replica(micro_batches=1)
    for key, traceparent in enumerate((_TRACED, "")):
        assert replica.add(key, [1, 2, 3] * 10, 5, traceparent=traceparent)
    follower.begin([replica.scheduler._by_key[key].request for key in (0, 1)])
    _run(replica, follower)
    (life,) = told
    assert not follower.follows
    assert life.request.key == 0
    assert life.arrived <= life.started <= life.answered <= life.ended
    assert life.chunks == 3  # of up to 13 tokens
    assert (life.tokens, life.steps, life.finish_reason) == (5, 4, FinishReason.LENGTH)
    assert life.reread == []


def test_a_sequence_that_loses_its_place_is_read_anew() -> None:
    told: list[Followed] = []
    follower = Follower(told.append)
    replica = Replica(micro_batches=1, num_blocks=10)
    for key in range(2):
        assert replica.add(key, [key, 2, 3, 4] * 2, 20, traceparent=_TRACED)
    follower.begin([replica.scheduler._by_key[key].request for key in range(2)])
    _run(replica, follower)
    first, second = sorted(told, key=lambda life: life.request.key)
    assert first.reread == []
    assert len(second.reread) >= 1
    assert all(second.answered < at < second.ended for at in second.reread)
    assert first.tokens == second.tokens == 20
