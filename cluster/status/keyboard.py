"""Single keys from the terminal while something else is shown on it."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

_MOST = 64  # keys that were pressed meanwhile


class Keyboard:
    """`wait` returns whether one of `keys` was pressed within so many seconds; without a terminal it only waits."""

    def __init__(self, listening: bool) -> None:
        self._listening = listening

    def wait(self, seconds: float, keys: str) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._listening:
                time.sleep(left)
            elif select.select([sys.stdin], [], [], left)[0]:
                pressed = os.read(sys.stdin.fileno(), _MOST).decode(errors="replace")
                if not pressed or set(keys) & set(pressed):  # nothing to read: the terminal has gone
                    return True
        return False


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Has keys come at once and unseen; afterwards the terminal is as before."""
    if not sys.stdin.isatty():
        yield Keyboard(False)
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield Keyboard(True)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
