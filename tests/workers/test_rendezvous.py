"""Ranks that meet over a store and sockets that strangers reach too."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch._C._distributed_c10d import HashStore, PrefixStore, ProcessGroupGloo, Store

from partitioning.planner import make_plan
from partitioning.topology import local_topology
from tests.partitioning.specs import model_spec
from workers.collectives.shared_file import create_file, open_file
from workers.parallel import ParallelContext, join_store, open_store
from workers.rendezvous import Impostor, SignedStore, prove
from workers.security.secret import new_secret

HOST = "127.0.0.1"
CPU = torch.device("cpu")
SECRET = new_secret()


def _other_keys(store: Store) -> list[str]:
    """What whoever reaches a store finds in it."""
    return [str(key) for key in store.list_keys()]


def test_what_a_stranger_writes_into_the_store_is_not_heeded() -> None:
    server = open_store(HOST, 10)
    rank = SignedStore(server, SECRET)
    stranger = join_store(HOST, server.port, 10)
    rank.set("host0", "here")
    assert rank.get("host0") == b"here"
    (place,) = _other_keys(stranger)
    stranger.set(place, "there")
    with pytest.raises(Impostor, match="host0 in the rendezvous store"):
        rank.get("host0")


def test_a_value_counts_only_under_the_key_that_it_was_set_for() -> None:
    inner = HashStore()
    rank = SignedStore(inner, SECRET)
    rank.set("a", "x")
    (place,) = _other_keys(inner)
    inner.set(place.replace("/a", "/b"), inner.get(place))
    with pytest.raises(Impostor, match="b in the rendezvous store"):
        rank.get("b")


def test_a_rank_with_another_secret_is_not_met() -> None:
    server = open_store(HOST, 10)
    SignedStore(join_store(HOST, server.port, 10), new_secret()).set("host1", "here")
    assert not SignedStore(server, SECRET).check(["host1"])


def _gloo(store: Store, rank: int, size: int) -> Any:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=20)
    options._devices = [ProcessGroupGloo.create_device(hostname=HOST)]
    return ProcessGroupGloo(store, rank, size, options)


@pytest.mark.parametrize("stranger", [None, 0, 2])
def test_who_connects_without_the_secret_is_found_out_before_anything_is_sent(stranger: int | None) -> None:
    store = HashStore()

    def connect(rank: int) -> bool:
        group = _gloo(PrefixStore("x", store), rank, 3)
        try:
            prove(group, new_secret() if rank == stranger else SECRET, CPU)
        except Impostor:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(connect, range(3))) == [stranger is None] * 3


def test_ranks_listen_on_the_clusters_address_and_on_no_other() -> None:
    """Without shared memory: store and Gloo, of two stages of two ranks."""
    plan = make_plan(model_spec(), "m", local_topology(4), tp=2, pp=2)
    before = _listening()
    server = open_store(HOST, 30)
    done = threading.Barrier(4)

    def join(rank: int) -> set[tuple[str, int]]:
        store = server if rank == 0 else join_store(HOST, server.port, 30)
        context = ParallelContext(plan, rank, store, SECRET, HOST, CPU, 30, host=str(rank))
        done.wait(60)
        opened = _listening() - before
        done.wait(60)
        context.close()
        return opened

    with ThreadPoolExecutor(4) as pool:
        opened = next(iter(pool.map(join, range(4))))
    assert len(opened) > 4
    assert {host.removeprefix("::ffff:") for host, _ in opened} == {HOST}


def _listening() -> set[tuple[str, int]]:
    connections = psutil.Process().net_connections("tcp")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


@pytest.fixture
def file() -> Any:
    path = create_file(64)
    yield path
    path.unlink()


def test_shared_memory_is_for_its_user_alone_whatever_the_umask(file: Path) -> None:
    before = os.umask(0o777)
    try:
        other = create_file(64)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o7777 for path in (file, other)} == {0o600}
    assert file.name.rpartition("-")[2] != other.name.rpartition("-")[2]
    other.unlink()
    os.close(open_file(file))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path, link: (link.symlink_to(path), link)[1], id="a link"),
        pytest.param(lambda path, link: (path.chmod(0o660), path)[1], id="open to others"),
        pytest.param(lambda path, link: (os.mkfifo(link, 0o600), link)[1], id="a pipe"),
    ],
)
def test_what_is_not_a_private_file_is_not_mapped(
    file: Path, tmp_path: Path, spoil: Callable[[Path, Path], Path]
) -> None:
    with pytest.raises(OSError, match=r"levels of symbolic links|this user alone"):
        open_file(spoil(file, tmp_path / "link"))
