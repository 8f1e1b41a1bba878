"""Files that are replaced while the process runs: certificates are renewed, tokens come and go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from workers.security import SecurityError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Reloaded(Generic[T]):
    """What `load` makes of `paths`, made again when one of them has changed. May be used from several threads.

    Raises:
        SecurityError: it could not be made the first time. Later what there is stays, and the log says why.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], T]) -> None:
        self._paths, self._load = paths, load
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._value = load()

    @property
    def current(self) -> T:
        with self._lock:
            # Looked at before it is read: what changes in between is read again the next time.
            stamps = self._stamps()
            if stamps != self._seen:
                self._seen = stamps
                self._renew()
            return self._value

    def _renew(self) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            self._value = self._load()
        except SecurityError as error:
            log.warning("reload failed, what was read before stays", extra={"files": names, "error": str(error)})
        else:
            log.info("reloaded", extra={"files": names})

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
