"""Collectives and channels in shared memory: between threads that each map the file, and between processes."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from tests.workers.processes import processes
from workers.collectives import CollectiveStalled, SharedMemoryChannel, SharedMemoryGroup
from workers.collectives.channel import channel_bytes
from workers.collectives.shared_file import create_file
from workers.collectives.shared_memory import group_bytes
from workers.native.library import library

T = TypeVar("T")

pytestmark = pytest.mark.skipif(library() is None, reason="without the native library, ranks meet over Gloo")

SLOT = 4096
SPIN_US = 20.0


@contextmanager
def a_file(size: int) -> Iterator[Path]:
    path = create_file(size)
    try:
        yield path
    finally:
        path.unlink()


def on_every_rank(
    size: int, body: Callable[[SharedMemoryGroup], T], slot_bytes: int = SLOT, timeout_s: float = 30
) -> list[T]:
    def run(rank: int) -> T:
        group = SharedMemoryGroup(path, rank, size, timeout_s, SPIN_US, slot_bytes)
        try:
            return body(group)
        finally:
            group.close()

    with a_file(group_bytes(size, slot_bytes)) as path, ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 231, 1024, 1025, 50_003])
def test_all_reduce_sums_in_the_order_of_the_ranks_with_equal_bits_on_each(
    size: int, dtype: torch.dtype, count: int
) -> None:
    inputs = torch.randn(size, count, generator=torch.Generator().manual_seed(1)).to(dtype)

    def body(group: SharedMemoryGroup) -> torch.Tensor:
        group.all_reduce(torch.ones(3))  # so that either slot begins
        return group.all_reduce(inputs[group.rank].clone())

    expected = inputs[0].float()
    for part in inputs[1:]:
        expected = expected + part.float()
    for result in on_every_rank(size, body):
        assert torch.equal(result, expected.to(dtype))


def test_bfloat16_sums_keep_infinities_and_nans() -> None:
    x = torch.tensor([float("inf"), float("-inf"), float("nan"), 3e38, 0.0, -0.0]).bfloat16()
    for result in on_every_rank(2, lambda group: group.all_reduce(x.clone())):
        torch.testing.assert_close(result, x + x, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(0, 2), (5,), (3, 700)])
def test_all_gather_keeps_shapes_types_and_the_order_of_ranks(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).mul(100).to(dtype)
    for result in on_every_rank(3, lambda group: group.all_gather(inputs[group.rank])):
        assert torch.equal(result, inputs)


def test_broadcasts_of_any_length_arrive_in_order_between_other_operations() -> None:
    lengths = [1, 5000, 3, 0, 1007, 1008, 1009, 2016, 1]

    def body(group: SharedMemoryGroup) -> None:
        for length in lengths:
            message = torch.arange(length, dtype=torch.int32)
            received = group.broadcast(message if group.rank == 0 else None)
            assert torch.equal(received, message)
            assert group.all_reduce(torch.ones(3)).tolist() == [3.0] * 3
        for length in lengths:  # and with nothing between them
            assert len(group.broadcast(torch.ones(length, dtype=torch.int32) if group.rank == 0 else None)) == length

    on_every_rank(3, body)


def test_a_straggler_waits_least_and_waiting_for_work_is_not_counted() -> None:
    groups: dict[int, SharedMemoryGroup] = {}

    def body(group: SharedMemoryGroup) -> float:
        groups[group.rank] = group
        if group.rank == 0:
            time.sleep(0.1)
        group.broadcast(torch.ones(1, dtype=torch.int32) if group.rank == 0 else None)
        assert group.waited_s == 0
        if group.rank == 1:
            while groups[0].operations == group.operations:
                time.sleep(0.01)
            time.sleep(0.1)  # the other one has begun to wait by then
        group.all_reduce(torch.ones(3))
        return group.waited_s

    first, straggler = on_every_rank(2, body)
    assert first > straggler == 0


def test_a_missing_rank_is_named_after_the_deadline() -> None:
    def body(group: SharedMemoryGroup) -> None:
        if group.rank == 0:
            with pytest.raises(CollectiveStalled, match=r"rank 1 of the stage did not reach operation 1 within 0\.2 s"):
                group.all_reduce(torch.ones(1))

    on_every_rank(2, body, timeout_s=0.2)


def test_abort_wakes_a_sleeper_long_before_its_deadline() -> None:
    def body(group: SharedMemoryGroup) -> None:
        if group.rank == 0:
            timer = threading.Timer(0.2, group.abort)
            timer.start()
            with pytest.raises(CollectiveStalled, match=r"within \d\.\d s"):
                group.all_reduce(torch.ones(1))
            timer.join()

    on_every_rank(2, body, timeout_s=1000)


def _sum_often(path: Path, rank: int, size: int, rounds: int) -> None:
    torch.set_num_threads(1)
    group = SharedMemoryGroup(path, rank, size, 60, 2.0)
    for number in range(rounds):
        assert group.all_reduce(torch.full((576,), float(number))).tolist() == [float(number * size)] * 576
    group.close()


def _die_after_one(path: Path) -> None:
    group = SharedMemoryGroup(path, 1, 2, 60, SPIN_US)
    group.all_reduce(torch.ones(1))
    os.kill(os.getpid(), 9)


@pytest.mark.slow
def test_many_more_ranks_than_cores_get_on() -> None:
    size = 4 * (os.cpu_count() or 1)
    with a_file(group_bytes(size)) as path:
        with processes(_sum_often, [(path, rank, size, 200) for rank in range(size)]) as codes:
            pass
        assert codes == [0] * size


def test_a_killed_peer_is_noticed_within_the_deadline() -> None:
    with a_file(group_bytes(2)) as path, processes(_die_after_one, [(path,)]) as codes:
        group = SharedMemoryGroup(path, 0, 2, 60, SPIN_US)
        group.all_reduce(torch.ones(1))
        group.close()
        survivor = SharedMemoryGroup(path, 0, 2, 0.3, SPIN_US)
        survivor.all_reduce(torch.ones(1))  # its number is 1, which the peer had reached
        with pytest.raises(CollectiveStalled, match="rank 1 of the stage did not reach operation 2"):
            survivor.all_reduce(torch.ones(1))
        survivor.close()
    assert codes == [-9]


def test_who_waits_uses_no_processor_time() -> None:
    used: list[float] = []

    def body(group: SharedMemoryGroup) -> None:
        if group.rank == 0:
            time.sleep(0.5)
            group.broadcast(torch.ones(1, dtype=torch.int32))
        else:
            started = time.thread_time()
            group.broadcast(None)
            used.append(time.thread_time() - started)

    on_every_rank(3, body)
    assert len(used) == 2
    assert max(used) < 0.1


PATIENT_US = 2000.0  # of csrc/wait.h: whoever looks so long in vain says so on the board


def board_of(path: Path) -> tuple[int, int]:
    """How many sleep, and until when the cores count as crowded: the head of a shared file, csrc/meeting.h."""
    with path.open("rb") as file:
        sleepers, until = struct.unpack("<I4xq", file.read(16))
    return sleepers, until


def until_one_sleeps(path: Path) -> None:
    while board_of(path)[0] == 0:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("operation", "late", "crowded"),
    [
        pytest.param(lambda group: group.all_reduce(torch.ones(3)), 1, True, id="sum"),
        pytest.param(lambda group: group.all_gather(torch.ones(3)), 0, True, id="gather"),
        pytest.param(
            lambda group: group.broadcast(None if group.rank else torch.ones(1, dtype=torch.int32)), 0, False, id="work"
        ),
        pytest.param(lambda group: group.hand_out(torch.ones(3)), 0, False, id="of other hosts"),
    ],
)
def test_who_sleeps_in_a_sum_takes_the_cores_for_crowded_but_who_waits_for_work_does_not(
    operation: Callable[[SharedMemoryGroup], object], late: int, crowded: bool
) -> None:
    def run(rank: int) -> None:
        group = SharedMemoryGroup(path, rank, 2, 30, PATIENT_US, SLOT)
        if rank == late:
            until_one_sleeps(path)
        operation(group)
        group.close()

    with a_file(group_bytes(2, SLOT)) as path, ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
        assert (board_of(path)[1] != 0) == crowded


def test_who_waits_for_another_stage_does_not_take_the_cores_for_crowded() -> None:
    with a_file(channel_bytes(4096)) as path, ThreadPoolExecutor(1) as pool:
        sender = SharedMemoryChannel(path, 4, 6, True, 4096, 30, PATIENT_US)
        receiver = SharedMemoryChannel(path, 6, 4, False, 4096, 30, PATIENT_US)
        receiving = pool.submit(receiver.receive, torch.empty(3))
        until_one_sleeps(path)
        sender.send(torch.ones(3))
        assert torch.equal(receiving.result(), torch.ones(3))
        assert board_of(path)[1] == 0
        sender.close()
        receiver.close()


def test_a_channel_hands_over_messages_of_any_size_in_order() -> None:
    sizes = [1, 3, 8191, 8192, 8193, 100_000, 0, 5]
    messages = [torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in sizes]
    capacity = 16_384

    with a_file(channel_bytes(capacity)) as path, ThreadPoolExecutor(1) as pool:
        sender = SharedMemoryChannel(path, 4, 6, True, capacity, 30, SPIN_US)
        receiver = SharedMemoryChannel(path, 6, 4, False, capacity, 30, SPIN_US)
        sending = pool.submit(lambda: [sender.send(message) for message in messages])
        for message in messages:
            assert torch.equal(receiver.receive(torch.empty_like(message)), message)
        sending.result()
        sender.close()
        receiver.close()


def test_a_channel_says_whom_it_waited_for_and_can_be_aborted() -> None:
    with a_file(channel_bytes(4096)) as path:
        receiver = SharedMemoryChannel(path, 6, 4, False, 4096, 0.2, SPIN_US)
        with pytest.raises(CollectiveStalled, match=r"rank 6 waited 0\.2 s in vain for rank 4"):
            receiver.receive(torch.empty(1))
        receiver.close()
        sender = SharedMemoryChannel(path, 4, 6, True, 4096, 1000, SPIN_US)
        timer = threading.Timer(0.2, sender.abort)
        timer.start()
        with pytest.raises(CollectiveStalled, match="in vain for rank 6"):
            sender.send(torch.ones(5000))
        timer.join()
        sender.close()
