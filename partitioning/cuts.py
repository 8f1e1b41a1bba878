"""How heads, columns, rows and layers are divided. Every cut may be uneven; nothing has to divide anything."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from partitioning.plan import Span

# Columns a GEMM kernel handles at once, and the block of the common quantised formats: cuts keep to multiples of it.
GRANULE = 32


def proportional(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `total`, as near to proportional to `weights` as can be (largest remainders)."""
    scale = total / sum(weights)
    counts = [int(weight * scale) for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - weights[i] * scale, i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def spans(counts: Sequence[int], granule: int = 1, limit: int | None = None) -> list[Span]:
    """Consecutive spans of `counts[i] * granule`, the last ones clipped at `limit`."""
    edges = [edge * granule for edge in accumulate(counts, initial=0)]
    if limit is not None:
        edges = [min(edge, limit) for edge in edges]
    return [Span(start, stop) for start, stop in pairwise(edges)]


@lru_cache(maxsize=4096)
def cut_columns(total: int, weights: tuple[float, ...]) -> tuple[Span, ...]:
    """`total` columns or rows for ranks of these speeds, at multiples of GRANULE when that costs no balance."""
    ranks = len(weights)
    granule = GRANULE
    while granule > 1 and total % (granule * ranks) and total // granule < 4 * ranks:
        granule //= 2
    return tuple(spans(proportional(-(-total // granule), weights), granule, total))


@lru_cache(maxsize=4096)
def cut_heads(heads: int, kv_heads: int, weights: tuple[float, ...]) -> tuple[tuple[Span, Span], ...]:
    """(query heads, KV heads) of each rank.

    The query heads are cut into consecutive spans, and each rank holds the KV heads that its own read: a KV head that
    a cut goes through is on both sides of it. The slowest rank is as quick as in any such cut. Among cuts that are
    equal in this the fewest KV heads are held, so groups stay whole where that costs no time, and then the ranks are
    as even as can be. Ranks that get no query head hold nothing.
    """
    group = heads // kv_heads
    limit = _least_seconds(heads, group, weights)
    # The best way to deal the heads before each edge to the ranks so far: (KV heads, unevenness), and its edges.
    ways: dict[int, tuple[tuple[int, float], tuple[int, ...]]] = {0: ((0, 0.0), (0,))}
    for weight in weights:
        longer: dict[int, tuple[tuple[int, float], tuple[int, ...]]] = {}
        for start, ((held, uneven), edges) in ways.items():
            for stop in range(start, _furthest(start, heads, group, limit, weight) + 1):
                merit = (held + _kv_read(start, stop, group), uneven + _size(start, stop, group) ** 2 / weight)
                # Of equals the last, in which this rank has least: idle ranks come after the others.
                if stop not in longer or merit <= longer[stop][0]:
                    longer[stop] = (merit, (*edges, stop))
        ways = longer
    queries = [Span(start, stop) for start, stop in pairwise(ways[heads][1])]
    return tuple((query, kv_span(query, group)) for query in queries)


def kv_span(heads: Span, group: int) -> Span:
    """The KV heads that these query heads read: head h reads h // group."""
    first = heads.start // group
    return Span(first, first + _kv_read(heads.start, heads.stop, group))


def _kv_read(start: int, stop: int, group: int) -> int:
    return -(-stop // group) - start // group if stop > start else 0


def _size(start: int, stop: int, group: int) -> int:
    """Of query heads [start, stop) and what they read, in units of 2 * head_dim * hidden parameters.

    A query head has rows of its projection and columns of the output's, a KV head rows of the key's and the value's.
    """
    return stop - start + _kv_read(start, stop, group)


def _furthest(start: int, heads: int, group: int, limit: float, weight: float) -> int:
    """Up to where a rank that begins at `start` can go with size / weight within `limit`."""
    stop = start
    while stop < heads and _size(start, stop + 1, group) / weight <= limit:
        stop += 1
    return stop


def _least_seconds(heads: int, group: int, weights: tuple[float, ...]) -> float:
    """The least size / weight that all ranks can keep to, with every head dealt."""

    def suffices(limit: float) -> bool:
        edge = 0
        for weight in weights:  # who begins further on gets at least as far, so each takes all it can
            edge = _furthest(edge, heads, group, limit, weight)
        return edge == heads

    limits = sorted({size / weight for size in range(heads + heads // group + 1) for weight in set(weights)})
    return limits[bisect_left(limits, True, key=suffices)]


def cut_layers(
    layers: int, layer_seconds: Sequence[float], extra_seconds: Sequence[float], room: Sequence[int]
) -> list[Span]:
    """Layers of each stage, such that the slowest stage is as quick as it can be.

    A layer takes `layer_seconds[i]` on stage i, which spends `extra_seconds[i]` besides (embedding, LM head) and has
    memory for `room[i]` layers. Every layer goes where the time is least once it is there: for equal layers that is
    optimal. Every stage must have room for a layer, and all of them for `layers`.
    """
    stages = len(layer_seconds)
    counts = [1] * stages
    queue = [(extra_seconds[i] + 2 * layer_seconds[i], i) for i in range(stages) if room[i] > 1]
    heapq.heapify(queue)
    for _ in range(layers - stages):
        seconds, i = heapq.heappop(queue)
        counts[i] += 1
        if counts[i] < room[i]:
            heapq.heappush(queue, (seconds + layer_seconds[i], i))
    return spans(counts)
