from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.load import Load, run
from benchmarks.load_report import Objective, Outcome, percentile, rows, table
from tests.replicas import config_for, plan_for
from tests.served import served


def test_arrivals_have_the_rate_and_the_parts_asked_for() -> None:
    load = Load(20, 100, {"a": 1, "b": 3}, 16, 8, 0.25, 50, seed=4)
    arrivals = list(load.arrivals(300))
    assert arrivals == list(load.arrivals(300))
    assert [arrival.at for arrival in arrivals] == sorted(arrival.at for arrival in arrivals)
    flood = [arrival for arrival in arrivals if arrival.at == 100 / 3]
    assert len(flood) == 50
    assert {arrival.tenant for arrival in flood} == {"a"}
    steady = [arrival for arrival in arrivals if arrival not in flood]
    assert 1800 <= len(steady) <= 2200
    assert 0.7 <= sum(arrival.tenant == "b" for arrival in steady) / len(steady) <= 0.8
    assert 0.2 <= sum(arrival.slow for arrival in arrivals) / len(arrivals) <= 0.3
    assert {len(arrival.prompt) for arrival in arrivals} == set(range(8, 25))
    assert {arrival.output_tokens for arrival in arrivals} == set(range(4, 13))


def test_bursts_leave_the_mean_rate_as_it_is() -> None:
    times = [arrival.at for arrival in Load(20, 200, {"": 1}, 16, 8, 0.0, 0, seed=4, bursts=4).arrivals(300)]
    in_bursts = sum(at % 10 < 2 for at in times)
    assert 3600 <= len(times) <= 4400
    assert 0.75 <= in_bursts / len(times) <= 0.85


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 90, 99)] == [50, 90, 99]
    assert percentile([7.0], 99) == 7.0


def test_goodput_leaves_out_what_came_too_late() -> None:
    outcomes = [
        Outcome("a", False, "done", 10, 0.5, 0.05, 1.0),
        Outcome("a", False, "done", 10, 3.0, 0.05, 4.0),
        Outcome("a", True, "done", 10, 9.0, 2.0, 30.0),
        Outcome("a", False, "refused", answered_s=0.01),
        Outcome("b", False, "Unavailable", 4, 0.1, 0.1, 0.5),
    ]
    a, b, both = rows(outcomes, Objective(2.0, 0.2), 10.0)
    assert (a.requests, a.done, a.refused, a.tokens_per_s, a.goodput_tokens_per_s) == (4, 3, 1, 3.0, 2.0)
    assert a.ttft_ms == pytest.approx((500, 3000, 3000))
    assert a.refusal_ms == pytest.approx((10, 10, 10))
    assert (b.done, b.others, b.goodput_tokens_per_s) == (0, {"Unavailable": 1}, 0.0)
    assert both.requests == 5
    assert "1 Unavailable" in table([a, b, both])


async def test_a_load_on_a_real_gateway_is_answered_or_refused(model: Path) -> None:
    plan = plan_for(model)
    load = Load(20, 2, {"": 1}, 8, 48, 0.0, 40, seed=1)  # outputs that last longer than the flood takes to come
    async with served(plan, config_for(plan), max_sequences=16) as cluster:
        async with asyncio.timeout(60):
            outcomes, seconds = await run(cluster.address, load, None, 60)
    assert {outcome.ended for outcome in outcomes} == {"done", "refused"}
    row = rows(outcomes, Objective(60, 60), seconds)[0]
    assert row.done >= 16
    assert row.refused >= 20
    assert row.goodput_tokens_per_s == row.tokens_per_s > 0
