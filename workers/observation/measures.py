"""What an engine counts of its own work, cheaply: `workers.observation.metrics` reads it when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from time import monotonic

from workers.sequence import Sequence

# Upper bounds in seconds: of waits for a place, and of the parts of a step, which go down to some microseconds.
_QUEUE_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEP_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)


class Durations:
    """How many of which length, in seconds, by `bounds` (those of a bound's own length are below it). One thread adds;
    others may look, and see a sum that is an addition ahead of its counts."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = _STEP_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.sum += seconds
        self.counts[bisect_left(self.bounds, seconds)] += 1


class Measures:
    """Of a replica's scheduling: `queued` until the first step; `queried_tokens` of sequences that begin were looked
    up in the prefix cache, which had `hit_tokens` of them."""

    def __init__(self) -> None:
        self.queued = Durations(_QUEUE_S)
        self.queried_tokens = 0
        self.hit_tokens = 0
        self.preemptions = 0

    def admitted(self, sequence: Sequence, hit_tokens: int) -> None:
        """It gets a place. One that comes back to it finds what it computed itself: that does not count."""
        if sequence.counted:
            self.queued.add(monotonic() - sequence.arrived)
            self.queried_tokens += 0 if sequence.uses_penalties else len(sequence.tokens)
            self.hit_tokens += hit_tokens
