"""How much a gateway takes on, and what it answers beyond that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic

from cluster.gateway.caller import Caller
from workers.bounds import FairBounds

_WEIGHT = 0.2  # of the newest interval in the running mean
_SHORTEST_MS, _LONGEST_MS = 50, 30_000


class Full(Exception):
    """As much as this gateway takes is being generated."""


class Draining(Exception):
    """The gateway takes no more requests."""


class Place:
    """What one request holds; `settle` says how many tokens it may need, once that is known."""

    def __init__(self, bounds: FairBounds, caller: Caller, sequences: int) -> None:
        self._bounds = bounds
        self._caller = caller
        self._sequences = sequences
        self._tokens = 0
        self._take(0)

    def settle(self, tokens: int) -> None:
        """Raises Full when the replicas have no room for so many tokens; then nothing is held any more."""
        self.leave()
        self._take(tokens)

    def leave(self) -> None:
        if self._sequences:
            self._bounds.give_back(self._caller.tenant, self._sequences, self._tokens)

    def _take(self, tokens: int) -> None:
        sequences, self._tokens = self._sequences, tokens
        if not self._bounds.take(self._caller.tenant, self._caller.weight, sequences, tokens):
            self._sequences = 0
            raise Full(
                f"{self._bounds.held_requests} sequences of {self._bounds.held_tokens} tokens are being generated, and "
                f"this gateway takes up to {self._bounds.requests} of {self._bounds.tokens}: try again after the time "
                "in retry-after-ms"
            )


class Admission:
    """Counts the sequences that are being generated and the tokens that they may need, up to `bounds`, and guesses when
    a place will be free."""

    def __init__(self, most: int) -> None:
        self.bounds = FairBounds(most, 1 << 62)
        self._interval = 1.0  # seconds between ends of requests, a running mean
        self._last_end = monotonic()
        self._refused = 0.0  # requests that were sent away and have not come again, for all that is known
        self._idle = asyncio.Event()
        self._idle.set()
        self.requests = 0
        self.draining = False

    def room_for(self, replicas: int, tokens: int) -> None:
        """There are so many replicas now, each of which can hold and queue sequences of so many tokens."""
        if replicas:  # while there is none, sequences wait for the next
            self.bounds.tokens = replicas * tokens

    @contextmanager
    def place(self, caller: Caller, sequences: int) -> Iterator[Place]:
        """Holds a place for a request of so many outputs.

        Raises:
            Draining: no request is taken any more.
            Full: there is no place now.
        """
        if self.draining:
            raise Draining("this gateway is shutting down: send the request to another one, or again in a while")
        place = Place(self.bounds, caller, sequences)
        if not self.requests:
            self._last_end = monotonic()  # idle time says nothing of how long requests take
        self.requests += 1
        self._idle.clear()
        try:
            yield place
        finally:
            place.leave()
            self.requests -= 1
            now = monotonic()
            self._interval += _WEIGHT * (now - self._last_end - self._interval)
            self._last_end = now
            self._refused = max(0.0, self._refused - 1)
            if not self.requests:
                self._idle.set()

    def retry_after_ms(self) -> int:
        """When one more request that is sent away may come again: about when as many will have ended as have been sent
        away, so that they do not all come at once."""
        self._refused = min(self._refused + 1, _LONGEST_MS / 1000 / max(self._interval, 1e-6))
        return round(min(max(self._interval * self._refused * 1000, _SHORTEST_MS), _LONGEST_MS))

    async def drain(self, seconds: float) -> int:
        """Takes no more requests and waits for those there are; returns how many are left when the time is up."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        return self.requests
