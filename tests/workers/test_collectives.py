"""Collectives through shared memory, between threads that each map the file like a process of their own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch

from workers.collectives import CollectiveStalled, SharedMemoryGroup
from workers.collectives.shared_memory import create_file

T = TypeVar("T")


def on_every_rank(
    size: int, body: Callable[[SharedMemoryGroup], T], slot_bytes: int = 4096, timeout_s: float = 10
) -> list[T]:
    path = create_file(size, slot_bytes)

    def run(rank: int) -> T:
        group = SharedMemoryGroup(path, rank, size, slot_bytes, timeout_s)
        return body(group)

    with ThreadPoolExecutor(size) as pool:
        try:
            return list(pool.map(run, range(size)))
        finally:
            path.unlink()


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_reduce_sums_over_the_ranks_with_equal_bits_on_each(size: int, dtype: torch.dtype) -> None:
    inputs = torch.randn(size, 7, 33, generator=torch.Generator().manual_seed(1)).to(dtype)

    def body(group: SharedMemoryGroup) -> torch.Tensor:
        return group.all_reduce(inputs[group.rank].clone())

    results = on_every_rank(size, body)
    expected = inputs.float().sum(0)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(results[0].float(), expected, atol=tolerance, rtol=tolerance)
    assert all(torch.equal(result, results[0]) for result in results)


def test_exchanges_larger_than_a_slot_go_in_pieces() -> None:
    x = torch.arange(10_000, dtype=torch.float32)

    def body(group: SharedMemoryGroup) -> tuple[torch.Tensor, torch.Tensor]:
        return group.all_reduce(x.clone()), group.all_gather(x + group.rank)

    for total, gathered in on_every_rank(2, body):
        assert torch.equal(total, 2 * x)
        assert torch.equal(gathered, torch.stack([x, x + 1]))


def test_broadcasts_of_any_length_arrive_in_order_between_other_operations() -> None:
    lengths = [1, 5000, 3, 1012, 1020, 2040, 1]

    def body(group: SharedMemoryGroup) -> None:
        for length in lengths:
            message = torch.arange(length, dtype=torch.int32)
            received = group.broadcast(message if group.rank == 0 else None)
            assert torch.equal(received, message)
            assert group.all_reduce(torch.ones(3)).tolist() == [3.0] * 3

    on_every_rank(3, body)


def test_a_missing_rank_is_named_after_the_deadline() -> None:
    def body(group: SharedMemoryGroup) -> None:
        if group.rank == 0:
            with pytest.raises(CollectiveStalled, match="rank 1 of the stage did not reach operation 1"):
                group.all_reduce(torch.ones(1))

    on_every_rank(2, body, timeout_s=0.2)
