"""What an all-reduce costs between ranks of this machine: python -m benchmarks.collectives prints a line each.

Wall and processor microseconds of one operation on rank 0, medians over rounds in which the kinds of group take turns:
shared memory, Gloo, and with four ranks also two pairs that share memory and meet over Gloo, as on two hosts.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import torch
from torch._C._distributed_c10d import FileStore, ProcessGroupGloo

from workers.collectives import Group, HierarchicalGroup, ProcessGroup, SharedMemoryGroup
from workers.collectives.shared_file import create_file
from workers.collectives.shared_memory import group_bytes

_SHAPES = ((1, 576), (32, 576), (512, 576))
_ROUNDS = 7
_TIMEOUT_S = 60.0


def main() -> None:
    context = multiprocessing.get_context("spawn")
    for size in (2, 3, 4):
        with TemporaryDirectory() as folder, ExitStack() as files:

            def file(ranks: int, files: ExitStack = files) -> Path:
                path = create_file(group_bytes(ranks))
                files.callback(path.unlink)
                return path

            pairs = [file(2), file(2)] if size == 4 else []
            arguments = (size, file(size), pairs, folder)
            others = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(1, size)]
            for other in others:
                other.start()
            _rank(0, *arguments)
            for other in others:
                other.join()


def _rank(rank: int, size: int, path: Path, pairs: Sequence[Path], folder: str) -> None:
    """Measures on one of `size` ranks that share `path`, and by twos the `pairs`, if there are any."""
    torch.set_num_threads(1)
    spin_us = 100.0 if size <= (os.cpu_count() or 1) else 2.0
    groups: dict[str, Group] = {
        "shared memory": SharedMemoryGroup(path, rank, size, _TIMEOUT_S, spin_us),
        "gloo": ProcessGroup(_gloo(f"{folder}/all", rank, size)),
    }
    if pairs:
        host, place = divmod(rank, 2)
        here = SharedMemoryGroup(pairs[host], place, 2, _TIMEOUT_S, spin_us)
        between = ProcessGroup(_gloo(f"{folder}/leaders", host, 2)) if place == 0 else None
        groups["two hosts"] = HierarchicalGroup(rank, ((0, 1), (2, 3)), here, between)
    for shape in _SHAPES:
        count = max(10, min(1000, 1_000_000 // (shape[0] * shape[1])))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in groups}
        for _ in range(_ROUNDS):
            for name, group in groups.items():
                found[name].append(_microseconds(group, shape, count if name == "shared memory" else count // 5 + 1))
        if rank == 0:
            for name, rounds in found.items():
                wall, used = (median(column) for column in zip(*rounds, strict=True))
                print(f"{size} ranks {list(shape)!s:>10} float32 {name:>13}: {wall:8.1f} us, {used:8.1f} us of rank 0")
    for group in groups.values():
        group.close()


def _gloo(store: str, rank: int, size: int) -> ProcessGroupGloo:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=_TIMEOUT_S)
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return ProcessGroupGloo(FileStore(store, size), rank, size, options)


def _microseconds(group: Group, shape: tuple[int, int], count: int) -> tuple[float, float]:
    x = torch.zeros(shape)
    group.all_reduce(x)
    started, used = perf_counter(), process_time()
    for _ in range(count):
        group.all_reduce(x)
    return (perf_counter() - started) / count * 1e6, (process_time() - used) / count * 1e6


if __name__ == "__main__":
    main()
