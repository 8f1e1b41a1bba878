"""How far a share of right answers, and a difference of two, may be from the truth by chance."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

_Z = 1.959964  # of the normal distribution's middle 95 %


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, "Probable inference", 1927)."""
    share, more = successes / trials, _Z**2 / trials
    middle = (share + more / 2) / (1 + more)
    half = _Z * sqrt(share * (1 - share) / trials + more / (4 * trials)) / (1 + more)
    return middle - half, middle + half


def paired_difference(own: Sequence[bool], base: Sequence[bool]) -> tuple[float, float]:
    """How much larger the share of `own` is than that of `base`, and half its 95 % interval: of pairs, those alone
    count that differ, so it is far narrower than the shares' own intervals."""
    gained = sum(mine and not theirs for mine, theirs in zip(own, base, strict=True))
    lost = sum(theirs and not mine for mine, theirs in zip(own, base, strict=True))
    count = len(own)
    return (gained - lost) / count, _Z * sqrt(gained + lost - (gained - lost) ** 2 / count) / count


def mean_with_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half its 95 % interval."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / max(count - 1, 1)
    return mean, _Z * sqrt(variance / count)
