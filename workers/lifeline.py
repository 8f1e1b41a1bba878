"""A rank's sign of life: a TCP connection on which it says, again and again, what it does.

The connection ends when the process does, which whoever holds the other end learns at once from the kernel; a process
that hangs falls silent, or says that its step does not move. Lines of JSON, after a first line from the other side with
the epoch's secret.
"""

from __future__ import annotations

import hmac
import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from workers.progress import Pulse

_GREETING_S = 5.0  # for a newcomer to say the secret
_MOST_FOLLOWERS = 8


class Lifeline:
    """Listens on `host`, at `port`, and tells every follower `pulse` each `interval_s` seconds, until `end`."""

    def __init__(self, host: str, secret: str, pulse: Callable[[], Pulse], interval_s: float) -> None:
        self._secret, self._pulse, self._interval_s = secret, pulse, interval_s
        self._ended = threading.Event()
        self._last_word = ""
        self._followers = threading.BoundedSemaphore(_MOST_FOLLOWERS)
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def end(self, reason: str) -> None:
        """Says as the last word why the rank's work is over; empty if it was asked to end."""
        self._last_word = json.dumps({"ended": reason})
        self._ended.set()

    def _listen(self) -> None:
        while True:
            follower, _ = self._listener.accept()
            if self._followers.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(follower,), name="lifeline", daemon=True).start()
            else:
                follower.close()

    def _serve(self, follower: socket.socket) -> None:
        with follower, suppress(OSError):
            follower.settimeout(_GREETING_S)
            if self._is_welcome(follower):
                ended = False
                while not ended:
                    ended = self._ended.is_set()
                    line = self._last_word if ended else json.dumps(asdict(self._pulse()))
                    follower.sendall(line.encode() + b"\n")
                    if not ended:
                        self._ended.wait(self._interval_s)
        self._followers.release()

    def _is_welcome(self, follower: socket.socket) -> bool:
        wanted = self._secret.encode() + b"\n"
        said = b""
        while len(said) < len(wanted) and (more := follower.recv(len(wanted) - len(said))):
            said += more
        return hmac.compare_digest(said, wanted)
