"""Ranks as processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def processes(target: Callable[..., None], arguments: list[tuple[object, ...]]) -> Iterator[list[int | None]]:
    """Runs a process for each of the arguments; their exit codes are there after the block."""
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=target, args=each, daemon=True) for each in arguments]
    codes: list[int | None] = []
    for process in running:
        process.start()
    yield codes
    for process in running:
        process.join(120)
        codes.append(process.exitcode)
