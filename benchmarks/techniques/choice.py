"""The smallest weights and cache that keep the budget, by what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from benchmarks.techniques.intervals import paired_difference
from benchmarks.techniques.quality import Quality
from benchmarks.techniques.rows import Budget, Row


def within(budget: Budget, own: Quality, base: Quality) -> bool:
    """By the figures as they are, whose intervals are wider than the budget."""
    difference, _ = paired_difference(own.right, base.right)
    return own.change <= budget.perplexity and 100 * difference >= -budget.points


def smallest_within(
    rows: Sequence[Row],
    budget: Budget,
    base: Quality,
    quality: Callable[[Row], Quality],
    weight_bytes: Callable[[Row], int],
) -> Row | None:
    """Of the engine's rows and these with an int8 cache, smallest weights first, and an int8 cache before another one
    of the same weights. None where none keeps the budget. `quality` is asked for combinations that no row has only
    when their parts keep the budget."""
    ways = {row.way: row for row in rows if row.engine == "phalanx" and not row.within_budget}
    kept = {way: row for way, row in ways.items() if within(budget, quality(row), base)}
    for row in sorted(kept.values(), key=lambda row: (weight_bytes(row), row.kv_cache == "auto")):
        for candidate in _with_caches(row, kept):
            if candidate.way in kept or within(budget, quality(candidate), base):
                return candidate
    return None


def _with_caches(row: Row, kept: Mapping[str, Row]) -> Iterator[Row]:
    if any(other.kv_cache == "int8" for other in kept.values()):
        yield replace(row, kv_cache="int8")
    yield row
