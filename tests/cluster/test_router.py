from __future__ import annotations

import pytest

from cluster.router import Burden, least_loaded


def test_the_replica_with_the_fewest_sequences_gets_the_next() -> None:
    assert least_loaded([Burden(3, 10), Burden(2, 900), Burden(4)]) == 1


def test_sequences_of_other_gateways_count() -> None:
    assert least_loaded([Burden(1, 0, others=5), Burden(3)]) == 1


def test_of_equals_the_one_with_less_to_compute_then_the_first() -> None:
    assert least_loaded([Burden(1, 50), Burden(1, 20), Burden(1, 20)]) == 1


def test_a_burst_spreads_evenly() -> None:
    counts = [0, 0, 0]
    for _ in range(31):
        counts[least_loaded([Burden(count, count * 100) for count in counts])] += 1
    assert sorted(counts) == [10, 10, 11]


def test_no_replica() -> None:
    with pytest.raises(ValueError, match="empty"):
        least_loaded([])
