"""Which gateway a call goes to, and whether and when it is made again. Knows nothing of threads or event loops."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from time import monotonic

import grpc

from phalanx.connection import is_literal
from phalanx.errors import NoGateway, PhalanxError
from phalanx.resumption import Stream

_AVOID_S = 5.0  # how long an address that failed is the last choice
_SHORTEST_S, _LONGEST_S = 0.1, 2.0  # between two rounds of all addresses

# What a stream ends with when its gateway dies, is stopped, or sheds it, but nothing is wrong with the request.
_CUT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
# A gateway that has room for a stream later is as good as one that is ready later.
_LATER = {*_CUT, grpc.StatusCode.RESOURCE_EXHAUSTED}


class Rotation:
    """Lets a client's calls take turns at its addresses, beginning anywhere. May be used from several threads."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.size = len(addresses)
        # The first try may meet a connection whose end was not noticed yet; a name may stand for several gateways.
        self.tries = sum(2 if is_literal(address) else 3 for address in addresses)
        self._turns = count(random.randrange(self.size))
        self._failed = [-_AVOID_S] * self.size

    def next(self) -> int:
        """The place of the address whose turn it is."""
        first, now = next(self._turns), monotonic()
        places = [(first + step) % self.size for step in range(self.size)]
        return next((place for place in places if now - self._failed[place] >= _AVOID_S), places[0])

    def behind(self, place: int) -> int:
        """The place to go to from one that failed."""
        self._failed[place] = monotonic()
        return (place + 1) % self.size


class Route:
    """The way of one request, from gateway to gateway. `place` is that of the address to call now.

    What has not begun is tried at every address at once; what has begun goes on as soon as any gateway takes it, for up
    to `reconnect_s` seconds each time.
    """

    def __init__(self, rotation: Rotation, timeout: float | None, reconnect_s: float) -> None:
        self._rotation = rotation
        self._deadline = None if timeout is None else monotonic() + timeout
        self._reconnect_s = reconnect_s
        self._tries = 0  # since anything came
        self._cut = 0.0  # when the first of them failed
        self._error: PhalanxError | None = None  # the one that says most about why
        self.place = rotation.next()

    @property
    def timeout(self) -> float | None:
        """Seconds that are left of the whole."""
        return None if self._deadline is None else max(0.0, self._deadline - monotonic())

    def arrived(self) -> None:
        """Something came from the gateway."""
        self._tries, self._error = 0, None

    def failed(self, error: PhalanxError, stream: Stream | None = None) -> float:
        """Chooses the next address; returns how many seconds to wait before it is called.

        Raises:
            PhalanxError: it is no use, or has been tried for long enough.
        """
        begun = stream is not None and stream.begun
        if stream is not None and not stream.resumable:
            raise error
        resuming = begun and self._tries > 0
        if error.code not in (_LATER if resuming else _CUT if begun else {grpc.StatusCode.UNAVAILABLE}):
            raise error from None
        now = monotonic()
        if not self._tries:
            self._cut = now
        if self._error is None or isinstance(self._error, NoGateway):
            self._error = error
        self._tries += 1
        self.place = self._rotation.behind(self.place)
        if not begun:
            if self._tries == self._rotation.tries:
                raise self._error from None
            return 0.0
        if now - self._cut >= self._reconnect_s:
            raise self._error from None
        rounds = self._tries // self._rotation.size - 1
        if rounds < 0:
            return 0.0
        pause = min(_SHORTEST_S * 2.0 ** min(rounds, 10), _LONGEST_S) * random.uniform(0.5, 1.0)
        left = self._cut + self._reconnect_s - now
        return min(pause, left if self.timeout is None else min(left, self.timeout))
