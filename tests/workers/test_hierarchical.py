"""Stages that span hosts: ranks with the same letter share memory, and the first of each letter meet over Gloo."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch._C._distributed_c10d import HashStore, Store

from partitioning.planner import make_plan
from partitioning.topology import local_topology
from tests.chaos.network import Machine, NoNetworks, machines
from tests.partitioning.specs import model_spec
from tests.workers.processes import processes
from workers.collectives import CollectiveStalled, Group, HierarchicalGroup, ProcessGroup, SharedMemoryGroup
from workers.native.build import OFF, SWITCH
from workers.native.library import library
from workers.parallel import ParallelContext, join_store, open_store

T = TypeVar("T")

pytestmark = pytest.mark.skipif(library() is None, reason="without the native library, ranks meet over Gloo")

HOSTS = ("aaab", "aabb", "abcc", "abab", "abba")
CPU = torch.device("cpu")
LOOPBACK = "127.0.0.1"


def join(store: Store, hosts: str, rank: int, timeout_s: float, address: str = LOOPBACK) -> ParallelContext:
    plan = make_plan(model_spec(), "m", local_topology(len(hosts)), tp=len(hosts), pp=1)
    return ParallelContext(plan, rank, store, "secret", address, CPU, timeout_s, host=hosts[rank])


def on_every_rank(hosts: str, body: Callable[[Group], T], timeout_s: float = 60) -> list[T]:
    """Runs `body` in a thread for each rank. No rank closes before all are done, as that would end others' waits."""
    store = HashStore()
    done = threading.Barrier(len(hosts))

    def run(rank: int) -> T:
        context = join(store, hosts, rank, timeout_s)
        try:
            return body(context.stage)
        finally:
            done.wait()
            context.close()

    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(run, range(len(hosts))))


@pytest.mark.parametrize(
    ("hosts", "kind"),
    [("aa", SharedMemoryGroup), ("ab", ProcessGroup), ("aab", HierarchicalGroup), ("abc", ProcessGroup)],
)
def test_memory_is_used_between_those_who_share_it(hosts: str, kind: type) -> None:
    assert on_every_rank(hosts, type) == [kind] * len(hosts)


def test_without_the_native_library_no_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, OFF)
    library.cache_clear()
    try:
        assert on_every_rank("aab", type) == [ProcessGroup] * 3
    finally:
        monkeypatch.undo()
        library.cache_clear()


@pytest.mark.parametrize("hosts", HOSTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_reduce_sums_over_hosts_with_equal_bits_on_each_rank(hosts: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for count in (0, 1, 576, 100_000):
        whole = torch.randint(-9, 9, (len(hosts), count), generator=generator).to(dtype)  # sums of these are exact
        broken = torch.randn(len(hosts), count, generator=generator).to(dtype)

        def body(group: Group, whole: torch.Tensor = whole, broken: torch.Tensor = broken) -> list[torch.Tensor]:
            return [group.all_reduce(x[group.rank].clone()) for x in (whole, broken)]

        results = on_every_rank(hosts, body)
        for exact, rounded in results:
            assert torch.equal(exact, whole.sum(0))
            assert torch.equal(rounded, results[0][1])
        near = 1e-6 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(results[0][1].float(), broken.float().sum(0), rtol=near, atol=near)


@pytest.mark.parametrize("hosts", HOSTS)
def test_all_gather_keeps_shapes_types_and_the_order_of_ranks(hosts: str) -> None:
    shapes = [(0, 2), (), (1,), (576,), (3, 33_333)]
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.bool]
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(len(hosts), *shape, generator=generator).mul(100).to(dtype) for shape in shapes for dtype in dtypes
    ]
    for results in on_every_rank(hosts, lambda group: [group.all_gather(x[group.rank]) for x in inputs]):
        for result, expected in zip(results, inputs, strict=True):
            assert result.dtype == expected.dtype
            assert torch.equal(result, expected)


@pytest.mark.parametrize("hosts", HOSTS)
def test_broadcasts_of_any_length_arrive_in_order_between_other_operations(hosts: str) -> None:
    def body(group: Group) -> None:
        for length in (1, 100_000, 0, 1023, 1024, 576):
            message = torch.arange(length, dtype=torch.int32)
            assert torch.equal(group.broadcast(message if group.rank == 0 else None), message)
            assert group.all_reduce(torch.ones(3)).tolist() == [len(hosts)] * 3

    on_every_rank(hosts, body)


@pytest.mark.parametrize(
    ("missing", "messages"),
    [
        (3, {0: "among ranks 0, 2 of the stage", 1: "rank 0 of .* leaders, ranks 0, 2", 2: "rank 3 of the stage"}),
        (2, {0: "among ranks 0, 2 of the stage", 1: "rank 0 of .* leaders, ranks 0, 2", 3: "rank 2 of the stage"}),
    ],
)
@pytest.mark.parametrize("operation", ["all_reduce", "all_gather"])
def test_a_missing_rank_is_named_on_every_other(missing: int, messages: dict[int, str], operation: str) -> None:
    def body(group: Group) -> None:
        if group.rank != missing:
            with pytest.raises(CollectiveStalled, match=messages[group.rank]):
                getattr(group, operation)(torch.ones(5))

    on_every_rank("aabb", body, timeout_s=1)


def test_who_waits_for_a_plan_names_those_it_may_be_waiting_for() -> None:
    def body(group: Group) -> None:
        if group.rank in (2, 3):
            with pytest.raises(CollectiveStalled, match="ranks 0, 2"):
                group.broadcast(None)

    on_every_rank("aabb", body, timeout_s=1)


@pytest.mark.parametrize(("hosts", "messages"), [("aabb", ["aborted", r"within 0\.\d s"]), ("ab", ["aborted"])])
def test_abort_ends_waits_inside_hosts_and_between_them_long_before_the_deadline(
    hosts: str, messages: list[str]
) -> None:
    def body(group: Group) -> None:
        if hosts[group.rank] == "a":
            timer = threading.Timer(0.3, group.abort)
            timer.start()
            with pytest.raises(CollectiveStalled, match=messages[group.rank]):
                group.all_reduce(torch.ones(1))
            timer.join()

    # To close, rank 0 waits for what it left; others close meanwhile, which ends it.
    on_every_rank(hosts, body, timeout_s=20)


def _survive(port: int, hosts: str, rank: int, dies: int) -> None:
    """Exits with 0 if the death of a rank is noticed."""
    torch.set_num_threads(1)
    context = join(join_store(LOOPBACK, port, 60), hosts, rank, 4)
    assert context.stage.all_reduce(torch.ones(576)).tolist() == [len(hosts)] * 576
    if rank == dies:
        os.kill(os.getpid(), 9)
    try:
        context.stage.all_reduce(torch.ones(576))
    except CollectiveStalled:
        os._exit(0)
    os._exit(1)


@pytest.mark.parametrize(
    "dies", [pytest.param(2, id="a-leader"), pytest.param(3, id="another", marks=pytest.mark.slow)]
)
def test_a_killed_rank_is_noticed_on_every_host(dies: int) -> None:
    store = open_store(LOOPBACK, 60)
    with processes(_survive, [(store.port, "aabb", rank, dies) for rank in range(4)]) as codes:
        pass
    assert codes == [-9 if rank == dies else 0 for rank in range(4)]


@pytest.fixture
def networks() -> Iterator[list[Machine]]:
    """Two machines that are network namespaces."""
    try:
        with machines(["a", "b"]) as made:
            yield made
    except NoNetworks as error:
        pytest.skip(f"no network namespaces here: {error}")


def _sum_over_networks(networks: list[Machine], port_file: Path, hosts: str, rank: int) -> None:
    torch.set_num_threads(1)
    machine = networks["ab".index(hosts[rank])]
    machine.enter()
    first, address = networks[0].address, machine.address
    if rank == 0:
        store = open_store(first, 60)
        port_file.write_text(str(store.port))
    else:
        while not (port_file.exists() and port_file.read_text()):
            threading.Event().wait(0.05)
        store = join_store(first, int(port_file.read_text()), 60)
    context = join(store, hosts, rank, 60, address)
    for count in (1, 576, 100_000):
        assert context.stage.all_reduce(torch.full((count,), rank + 1.0)).tolist() == [10.0] * count
    assert context.stage.all_gather(torch.tensor(rank)).tolist() == [0, 1, 2, 3]
    context.close()


def test_ranks_in_two_networks_meet(networks: list[Machine], tmp_path: Path) -> None:
    with processes(_sum_over_networks, [(networks, tmp_path / "port", "abab", rank) for rank in range(4)]) as codes:
        pass
    assert codes == [0] * 4
