"""How much a gateway takes on, and what it answers beyond that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic

_WEIGHT = 0.2  # of the newest interval in the running mean
_SHORTEST_MS, _LONGEST_MS = 50, 10_000


class Full(Exception):
    """As many sequences as this gateway takes are being generated."""


class Draining(Exception):
    """The gateway takes no more requests."""


class Admission:
    """Counts the sequences that are being generated, up to `most`, and guesses when a place will be free."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sequences = 0
        self._interval = 1.0  # seconds between ends of requests, a running mean
        self._last_end = monotonic()
        self._idle = asyncio.Event()
        self._idle.set()
        self.requests = 0
        self.draining = False

    @contextmanager
    def place(self, sequences: int) -> Iterator[None]:
        """Holds a place for a request of so many outputs.

        Raises:
            Draining: no request is taken any more.
            Full: there is no place now.
        """
        if self.draining:
            raise Draining("this gateway is shutting down: send the request to another one, or again in a while")
        if self._sequences + sequences > self._most:
            raise Full(
                f"{self._sequences} sequences are being generated, and this gateway takes up to {self._most}: "
                "try again after the time in retry-after-ms"
            )
        self._sequences += sequences
        self.requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._sequences -= sequences
            self.requests -= 1
            now = monotonic()
            self._interval += _WEIGHT * (now - self._last_end - self._interval)
            self._last_end = now
            if not self.requests:
                self._idle.set()

    @property
    def retry_after_ms(self) -> int:
        """When it is worth trying again: about when the next request will have ended."""
        return round(min(max(self._interval * 1000, _SHORTEST_MS), _LONGEST_MS))

    async def drain(self, seconds: float) -> int:
        """Takes no more requests and waits for those there are; returns how many are left when the time is up."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        return self.requests
