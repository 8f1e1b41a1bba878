"""What guessing may cost while it does not pay: a small share of the time, whatever the estimates say."""

from __future__ import annotations

_SHARE = 0.02  # of the time that steps take
_START_S, _MOST_S, _LEAST_S = 0.2, 0.5, -0.2


class Purse:
    """Seconds of steps saved by right guesses, less those spent on guessing; they are not to fall below 0 for long."""

    def __init__(self) -> None:
        self._balance = _START_S

    @property
    def empty(self) -> bool:
        return self._balance <= 0

    def earn(self, step_s: float) -> None:
        """A step took so long."""
        self._add(_SHARE * step_s)

    def saved(self, seconds: float) -> None:
        self._add(seconds)

    def spend(self, seconds: float) -> None:
        self._add(-seconds)

    def _add(self, seconds: float) -> None:
        self._balance = max(_LEAST_S, min(_MOST_S, self._balance + seconds))
