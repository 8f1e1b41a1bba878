"""How much may be held at once, in requests and in tokens, so that nobody's flood shuts out everybody else."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(slots=True)
class _Held:
    weight: float
    requests: int = 0
    tokens: int = 0


class FairBounds:
    """Up to `requests` requests of `tokens` tokens. When that is reached, a tenant that holds less than its share by
    weight of it is still let in, up to twice the bounds in all: who holds more gets nothing new until others have had
    theirs. A request too large for the bounds is let in alone. May be called from any thread."""

    def __init__(self, requests: int, tokens: int) -> None:
        self.requests = requests
        self.tokens = tokens
        self.held_requests = 0
        self.held_tokens = 0
        self._held: dict[str, _Held] = {}
        self._weights = 0.0
        self._lock = threading.Lock()

    def take(self, tenant: str, weight: float, requests: int, tokens: int) -> bool:
        """Whether there is room; then it is taken."""
        with self._lock:
            own = self._held.get(tenant)
            others = self._weights - (own.weight if own else 0.0)
            share = weight / (others + weight)
            mine = own or _Held(weight)
            room = self._fits(1, self.held_requests + requests, self.held_tokens + tokens)
            if not room and share < 1:
                below = self._fits(share, mine.requests + requests, mine.tokens + tokens)
                room = below and self._fits(2, self.held_requests + requests, self.held_tokens + tokens)
            if room or not self.held_requests:
                mine.weight = weight
                mine.requests += requests
                mine.tokens += tokens
                self._held[tenant] = mine
                self._weights = others + weight
                self.held_requests += requests
                self.held_tokens += tokens
                return True
            return False

    def give_back(self, tenant: str, requests: int, tokens: int) -> None:
        """What `take` has taken, or a part of it."""
        with self._lock:
            mine = self._held[tenant]
            mine.requests -= requests
            mine.tokens -= tokens
            self.held_requests -= requests
            self.held_tokens -= tokens
            if not mine.requests:
                del self._held[tenant]
                self._weights = self._weights - mine.weight if self._held else 0.0

    def _fits(self, factor: float, requests: int, tokens: int) -> bool:
        return requests <= max(1, factor * self.requests) and tokens <= factor * self.tokens
