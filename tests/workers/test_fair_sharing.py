"""How tenants share a replica: by tokens, by weight, and nobody for ever behind others."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.token_replica import VOCAB, Replica, alone
from workers.bounds import FairBounds
from workers.request import EngineConfig
from workers.tenant import Tenant

_CONFIG = EngineConfig(max_running=6, max_batch_tokens=13, max_waiting=2000)


class _Load:
    """Keeps requests of some tenants waiting, and counts what each is served, as `workers.tenant` prices it."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.keys = itertools.count()

    def send(self, tenant: str, weight: float, requests: int, prompt: int, output: int) -> None:
        for _ in range(requests):
            key = next(self.keys)
            tokens = [(key + place) % VOCAB for place in range(prompt)]
            assert self.replica.add(key, tokens, output, tenant=tenant, weight=weight)

    def tenant(self, name: str) -> Tenant:
        return self.replica.scheduler._tenants._known[name]

    def served(self, name: str) -> float:
        return self.tenant(name).counter * self.tenant(name).weight

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.replica.advance()


def _most_held(prompt: int, output: int) -> int:
    """The cost of all that a replica can hold of one tenant: prompts, and two for each token that may yet come."""
    return _CONFIG.max_running * (prompt + 2 * output)


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=4),
    shapes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=4, max_size=4),
    steps=st.sampled_from([(1, False), (2, False), (1, True)]),
)
def test_shares_follow_the_weights_whatever_the_requests_look_like(
    weights: list[float], shapes: list[tuple[int, int]], steps: tuple[int, bool]
) -> None:
    micro_batches, look_ahead = steps
    load = _Load(Replica(micro_batches, 24, _CONFIG, look_ahead=look_ahead))
    names = "abcd"[: len(weights)]
    for name, weight, (prompt, output) in zip(names, weights, shapes, strict=False):
        load.send(name, weight, 120, prompt, output)
    while True:
        load.run(5)
        if not all(load.tenant(name).waiting for name in names):
            break
        counters = [load.tenant(name).counter for name in names]
        assert max(counters) - min(counters) <= max(
            _most_held(*shape) / weight for weight, shape in zip(weights, shapes, strict=False)
        )
    assert min(load.served(name) for name in names) > 0


def test_three_times_the_weight_is_three_times_the_tokens() -> None:
    load = _Load(Replica(1, 60, _CONFIG))
    load.send("a", 1, 500, 5, 8)
    load.send("b", 3, 500, 12, 3)
    load.run(300)
    assert load.tenant("a").waiting
    assert load.tenant("b").waiting
    assert 2.8 <= load.served("b") / load.served("a") <= 3.2


def test_idle_time_is_no_credit() -> None:
    load = _Load(Replica(1, 60, _CONFIG))
    load.send("late", 1, 1, 4, 4)
    load.send("busy", 1, 1000, 6, 6)
    load.run(400)
    before = load.served("busy")
    assert load.tenant("late").waiting == 0
    load.send("late", 1, 600, 6, 6)
    late = load.served("late")
    load.run(400)
    assert load.tenant("busy").waiting
    assert load.tenant("late").waiting
    served = load.served("busy") - before, load.served("late") - late
    assert abs(served[0] - served[1]) <= 2 * _most_held(6, 6)
    assert min(served) > 1000


@pytest.mark.parametrize("look_ahead", [False, True])
def test_a_flood_of_long_streams_keeps_nobody_out_until_one_of_them_ends(look_ahead: bool) -> None:
    config = EngineConfig(max_running=4, max_batch_tokens=64, max_model_len=2000)
    replica = Replica(1, 200, config, look_ahead=look_ahead)
    for key in range(8):
        replica.add(key, [key], 150, tenant="flood")
    for _ in range(30):
        replica.advance()
    replica.add(8, [1, 2, 3], 3, tenant="other")
    steps = 0
    while 8 not in replica.outputs:
        replica.advance()
        steps += 1
    assert steps < 60
    assert all(output.finish_reason is None for own in replica.outputs.values() for output in own)
    replica.run_dry()
    for key in range(8):
        assert replica.tokens_of(key) == alone([key], 150)


def test_a_tenants_only_sequence_is_not_taken_from_it() -> None:
    replica = Replica(1, 10, EngineConfig(max_running=1, max_model_len=2000))
    replica.add(0, [1], 30, tenant="first")
    replica.advance()
    replica.add(1, [2], 1, tenant="other")
    replica.run_dry()
    assert replica.scheduler.steps == 31


def test_priority_orders_one_tenants_requests_and_not_those_of_others() -> None:
    replica = Replica(1, config=EngineConfig(max_running=1))
    order: list[int] = []
    for key, (tenant, priority) in enumerate([("a", 0), ("a", 5), ("b", 0), ("b", 100)]):
        replica.add(key, [key], 2, priority, tenant=tenant)
    while len(order) < 4:
        replica.advance()
        order += [key for key in replica.outputs if key not in order]
    assert [key for key in order if key < 2] == [1, 0]
    assert [key for key in order if key >= 2] == [3, 2]
    assert {order[0], order[1]} == {1, 3}, "one of each tenant first"


def test_low_priorities_age() -> None:
    replica = Replica(1, config=EngineConfig(max_running=1))
    replica.add(0, [0], 1, priority=-1)
    waiting = replica.scheduler._waiting
    old = waiting.pop()
    old.rank = old.rank[0] - 10.5, old.rank[1]  # as if it had come ten and a half seconds ago
    waiting.push(old)
    replica.add(1, [1], 1)
    replica.advance()
    assert list(replica.outputs) == [0]


@pytest.mark.parametrize("look_ahead", [False, True])
def test_what_was_computed_before_is_not_paid_twice_when_blocks_run_out(look_ahead: bool) -> None:
    load = _Load(Replica(1, 12, _CONFIG, look_ahead=look_ahead))
    load.send("a", 1, 4, 2, 40)
    load.replica.run_dry()
    computed = 4 * (2 + 40 - 1)
    assert load.replica.scheduler.steps > 60, "some had to wait for blocks"
    assert load.served("a") == computed + 4 * 40


def test_a_full_queue_still_takes_those_who_hold_less_than_their_share() -> None:
    bounds = FairBounds(10, 1000)
    assert sum(bounds.take("flood", 1, 1, 10) for _ in range(50)) == 10
    assert sum(bounds.take("other", 1, 1, 10) for _ in range(50)) == 5
    assert sum(bounds.take("third", 2, 1, 10) for _ in range(50)) == 5
    assert bounds.held_requests == 20, "twice the bound is the most"
    for _ in range(9):
        bounds.give_back("flood", 1, 10)
    assert sum(bounds.take("flood", 1, 1, 10) for _ in range(50)) == 1, "a quarter of ten is what it may hold now"


def test_a_queue_is_bounded_by_tokens_too_and_takes_one_that_is_larger_alone() -> None:
    bounds = FairBounds(10, 100)
    assert bounds.take("a", 1, 1, 5000)
    assert not bounds.take("a", 1, 1, 1)
    bounds.give_back("a", 1, 5000)
    assert sum(bounds.take("a", 1, 1, 30) for _ in range(10)) == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 40), st.booleans()), max_size=80))
def test_the_bounds_hold_and_their_books_balance(moves: list[tuple[str, int, int, bool]]) -> None:
    bounds = FairBounds(10, 100)
    weights = {"a": 1.0, "b": 0.3, "c": 7.0}
    held: list[tuple[str, int, int]] = []
    for tenant, requests, tokens, leave in moves:
        if leave and held:
            bounds.give_back(*held.pop(requests % len(held)))
        elif bounds.take(tenant, weights[tenant], requests, tokens):
            held.append((tenant, requests, tokens))
        assert bounds.held_requests == sum(entry[1] for entry in held)
        assert bounds.held_tokens == sum(entry[2] for entry in held)
        assert bounds.held_requests <= 20
        assert bounds.held_tokens <= 200
    for entry in held:
        bounds.give_back(*entry)
    assert bounds.take("b", 1, 10, 100)


def test_tenants_that_are_gone_are_forgotten() -> None:
    load = _Load(Replica(1, 60, _CONFIG))
    for number in range(5000):
        load.send(f"tenant {number}", 1, 1, 1, 1)
        load.replica.run_dry()
    assert len(load.replica.scheduler._tenants._known) <= 4096
    assert len(load.replica.scheduler._waiting._lines) <= 1
