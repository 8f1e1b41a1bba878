"""One command at a time writes to a folder: two would take each other's unfinished files for their own."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from partitioning.cache import writable_cache


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Keeps other commands of this user and machine from writing to `out` meanwhile.

    Raises:
        typer.BadParameter: one does so already.
        CacheError: there is no place for the lock.
    """
    locks = writable_cache("writing")
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    with (locks / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the file is closed, or its process dies
        except BlockingIOError:
            raise typer.BadParameter(
                f"another command is writing to {out}: wait until it ends, or name another --out"
            ) from None
        yield
