"""How quick, and how well timed, is the way from one node to another? Both ends of a short exchange over TCP.

Who calls says a secret, asks for the other's clock some times, then sends for a second; who is called tells how much
came in what time. The clocks' difference is that of the quickest exchange, taken at its middle, as in NTP (RFC 5905).
"""

from __future__ import annotations

import hmac
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

_CONNECT_S = 5.0
_SILENT_S = 10.0
_SEND_S = 1.0
_MOST_BYTES = 1 << 30
_PIECE = 1 << 20
_LOOKS = 5
_CLOCK, _SEND = b"c", b"s"
_DOUBLE = struct.Struct("!d")
_RESULT = struct.Struct("!Qd")


class LinkError(ConnectionError):
    """The other node cannot be reached, or the exchange broke off."""


@dataclass(frozen=True)
class LinkFigures:
    """`ahead_s` is how much the other's clock is before this one's, give or take half of `round_trip_s`."""

    bytes_per_s: float
    round_trip_s: float
    ahead_s: float


class LinkListener:
    """Answers callers at any port of `host` who say `secret`, until the process ends."""

    def __init__(self, host: str, secret: str) -> None:
        self._secret = secret.encode()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, name="doctor's link", daemon=True).start()

    def _listen(self) -> None:
        while True:
            caller, _ = self._listener.accept()
            with caller, suppress(OSError):
                caller.settimeout(_SILENT_S)
                if hmac.compare_digest(_exactly(caller, len(self._secret)), self._secret):
                    _answer(caller)


def measure(host: str, port: int, secret: str) -> LinkFigures:
    """Takes a second or a gigabyte, whichever is less.

    Raises:
        LinkError: see there.
    """
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S) as link:
            link.settimeout(_SILENT_S)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.sendall(secret.encode())
            round_trip_s, ahead_s = min(_look_at_clock(link) for _ in range(_LOOKS))
            link.sendall(_SEND)
            _send(link)
            count, seconds = _RESULT.unpack(_exactly(link, _RESULT.size))
    except OSError as error:
        raise LinkError(f"{host}:{port}: {error.strerror or error}") from None
    return LinkFigures(count / max(seconds, 1e-6), round_trip_s, ahead_s)


def _answer(caller: socket.socket) -> None:
    while _exactly(caller, 1) == _CLOCK:
        caller.sendall(_DOUBLE.pack(time.time()))
    count, begun = 0, time.perf_counter()
    buffer = bytearray(_PIECE)
    while read := caller.recv_into(buffer):
        count += read
    caller.sendall(_RESULT.pack(count, time.perf_counter() - begun))


def _look_at_clock(link: socket.socket) -> tuple[float, float]:
    begun = time.time()
    link.sendall(_CLOCK)
    (theirs,) = _DOUBLE.unpack(_exactly(link, _DOUBLE.size))
    ended = time.time()
    return ended - begun, theirs - (begun + ended) / 2


def _send(link: socket.socket) -> None:
    piece, sent, end = bytes(_PIECE), 0, time.monotonic() + _SEND_S
    while sent < _MOST_BYTES and time.monotonic() < end:
        link.sendall(piece)
        sent += len(piece)
    link.shutdown(socket.SHUT_WR)


def _exactly(link: socket.socket, count: int) -> bytes:
    """Raises LinkError: the other side ended before it had sent so many bytes."""
    got = b""
    while len(got) < count:
        more = link.recv(count - len(got))
        if not more:
            raise LinkError("the connection ended early")
        got += more
    return got
