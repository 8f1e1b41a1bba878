"""How heads, columns, rows and layers are divided. Every cut may be uneven; nothing has to divide anything."""

from __future__ import annotations

import heapq
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

    Up to as many ranks as KV heads, each rank holds whole groups. With more, the ranks are dealt to the KV heads;
    those that share one replicate it and divide its query heads. Ranks beyond the query heads hold none.
    """
    ranks, group = len(weights), heads // kv_heads
    if ranks <= kv_heads:
        whole = spans(proportional(kv_heads, weights))
        return tuple((Span(kv.start * group, kv.stop * group), kv) for kv in whole)
    cuts: list[tuple[Span, Span]] = []
    for kv, team in enumerate(spans(proportional(ranks, [1.0] * kv_heads))):
        shares = proportional(group, weights[team.start : team.stop])
        for part in spans(shares):
            query = Span(kv * group + part.start, kv * group + part.stop)
            cuts.append((query, Span(kv, kv + 1 if len(query) else kv)))
    return tuple(cuts)


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
