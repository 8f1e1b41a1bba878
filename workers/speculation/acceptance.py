"""How well a sequence's guesses do, and so how many are worth their price."""

from __future__ import annotations

from math import log

MOST = 15  # guesses for one token: a matrix product of 16 rows
_START = 0.5
_WEIGHT = 0.1  # of a new guess
_SUREST = 0.98
_TRIES = 1 / 128  # of the time: what guesses that do not seem to be worth it may cost


class Acceptance:
    """The share of a sequence's guesses that the model drew, of late; `rate` is what it is taken to be at first."""

    def __init__(self, rate: float = _START) -> None:
        self._rate = rate
        self._idle = 0  # tokens for which no guess was worth it

    @property
    def rate(self) -> float:
        return self._rate

    def worth(self, price: float) -> int:
        """How many guesses to make where each costs as much as `price` tokens, above 0: as long as the next one, which
        counts only if those before it are right, brings more."""
        rate = self._rate
        if rate > price:
            return min(MOST, int(log(price) / log(rate)))
        self._idle += 1
        return int(self._idle * _TRIES >= price and price < _SUREST)

    def learn(self, right: int, wrong: bool) -> None:
        """So many guesses were right, and then one was `wrong` or all were right."""
        self._idle = 0
        rate = 1 - (1 - self._rate) * (1 - _WEIGHT) ** right
        self._rate = min(_SUREST, rate * (1 - _WEIGHT) if wrong else rate)
