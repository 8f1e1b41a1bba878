from __future__ import annotations

from itertools import combinations_with_replacement, pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioning.coverage import check_plan
from partitioning.cuts import cut_columns, cut_heads, cut_layers, proportional, spans
from partitioning.plan import Span
from partitioning.planner import make_plan
from partitioning.topology import ETHERNET, Topology, cpu_node
from tests.partitioning.specs import model_spec

ROOMY = 1 << 44


def hosts(ranks: int) -> Topology:
    return Topology((cpu_node("host", ranks, cores=4, memory_bytes=ROOMY * ranks),), ETHERNET)


@given(
    kv_heads=st.integers(1, 6),
    group=st.integers(1, 5),
    layers=st.integers(1, 12),
    intermediate=st.integers(1, 3000),
    vocab=st.integers(1, 5000),
    tp=st.integers(1, 20),
    pp=st.integers(1, 5),
    weights=st.lists(st.floats(0.1, 10), min_size=20, max_size=20),
)
def test_any_degree_covers_any_model_exactly(
    kv_heads: int, group: int, layers: int, intermediate: int, vocab: int, tp: int, pp: int, weights: list[float]
) -> None:
    pp = min(pp, layers)
    model = model_spec(layers=layers, heads=kv_heads * group, kv_heads=kv_heads, intermediate=intermediate, vocab=vocab)
    plan = make_plan(model, "m", hosts(tp * pp), tp=tp, pp=pp, device_weights=weights[:tp])
    check_plan(plan)  # every slice once, and each head beside the KV head it reads
    # The same counted by hand, in case the check itself is blind.
    for stage in range(pp):
        ranks = plan.stage(stage)
        assert sorted(head for rank in ranks for head in _numbers(rank.heads)) == list(range(model.num_heads))
        assert sorted(column for rank in ranks for column in _numbers(rank.mlp)) == list(range(intermediate))
        read = {head // group for rank in ranks for head in _numbers(rank.heads)}
        assert read == set(range(kv_heads))
        assert all({h // group for h in _numbers(rank.heads)} <= set(_numbers(rank.kv_heads)) for rank in ranks)
    for stage in {0, pp - 1}:
        assert sum(len(rank.vocab) for rank in plan.stage(stage)) == vocab
    assert sum(len(plan.stage(stage)[0].layers) for stage in range(pp)) == layers


def head_parameters(heads: Span, group: int) -> int:
    """Of query and output (a head each), key and value (a KV head each), in matrices of [head_dim, hidden]."""
    return 2 * len(heads) + 2 * len({head // group for head in _numbers(heads)})


@given(
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 5),
    weights=st.lists(st.sampled_from([1.0, 1.5, 2.0, 3.3]), min_size=1, max_size=4),
)
def test_no_other_cut_of_heads_has_a_quicker_slowest_rank_or_holds_fewer_kv_heads(
    kv_heads: int, group: int, weights: list[float]
) -> None:
    def merit(cut: list[Span]) -> tuple[float, int]:
        seconds = max(head_parameters(heads, group) / weight for heads, weight in zip(cut, weights, strict=True))
        return seconds, sum(len({head // group for head in _numbers(heads)}) for heads in cut)

    heads, cut = kv_heads * group, cut_heads(kv_heads * group, kv_heads, tuple(weights))
    edges = combinations_with_replacement(range(heads + 1), len(weights) - 1)
    others = [[Span(*pair) for pair in pairwise((0, *inner, heads))] for inner in edges]
    assert [span for span, _ in cut] in others
    assert all(_numbers(kv) == range(kv.start, kv.stop) and len(kv) >= bool(len(span)) for span, kv in cut)
    found, best = merit([span for span, _ in cut]), min(map(merit, others))
    assert found[0] <= best[0] + 1e-9
    assert found[1] == best[1]


@given(
    kv_heads=st.integers(1, 16),
    group=st.integers(1, 16),
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=16),
)
def test_heads_cut_anywhere_are_never_slower_than_whole_groups(kv_heads: int, group: int, weights: list[float]) -> None:
    def seconds(cut: list[Span]) -> float:
        return max(head_parameters(heads, group) / weight for heads, weight in zip(cut, weights, strict=True))

    cut = cut_heads(kv_heads * group, kv_heads, tuple(weights))
    whole = [Span(kv.start * group, kv.stop * group) for kv in spans(proportional(kv_heads, weights))]
    assert seconds([heads for heads, _ in cut]) <= seconds(whole) * (1 + 1e-9)


def test_nine_heads_over_two_ranks_hold_the_kv_head_in_the_middle_twice() -> None:
    assert cut_heads(9, 3, (1.0, 1.0)) == ((Span(0, 5), Span(0, 2)), (Span(5, 9), Span(1, 3)))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "expected"),
    [
        (32, 8, 4, [(8, 2)] * 4),
        (64, 8, 3, [(22, 3), (21, 4), (21, 3)]),
        (10, 2, 3, [(4, 1), (3, 2), (3, 1)]),
        (14, 2, 4, [(4, 1), (3, 1)] * 2),
        (14, 2, 8, [(2, 1), (2, 1), (2, 1), (1, 1)] * 2),
        (10, 10, 4, [(3, 3), (3, 3), (2, 2), (2, 2)]),
        (9, 3, 4, [(3, 1)] * 3 + [(0, 0)]),  # a fourth KV head would cost memory and save no time
        (3, 3, 5, [(1, 1)] * 3 + [(0, 0)] * 2),
    ],
)
def test_groups_stay_whole_where_that_costs_no_time(
    heads: int, kv_heads: int, ranks: int, expected: list[tuple[int, int]]
) -> None:
    assert [(len(query), len(kv)) for query, kv in cut_heads(heads, kv_heads, (1.0,) * ranks)] == expected


def test_a_rank_three_times_as_quick_gets_most_heads_wherever_it_stands() -> None:
    assert [len(heads) for heads, _ in cut_heads(9, 3, (3.0, 1.0))] == [7, 2]
    assert [len(heads) for heads, _ in cut_heads(9, 3, (1.0, 3.0))] == [2, 7]


@pytest.mark.parametrize(("total", "ranks"), [(1536, 2), (1536, 5), (28672, 3), (11008, 7)])
def test_wide_layers_are_cut_at_kernel_granularity(total: int, ranks: int) -> None:
    cut = cut_columns(total, (1.0,) * ranks)
    assert all(span.stop % 32 == 0 for span in cut)
    assert max(map(len, cut)) - min(map(len, cut)) <= 32


@pytest.mark.parametrize(("total", "ranks"), [(88, 3), (307, 4), (44, 4), (5, 4)])
def test_narrow_layers_stay_even_rather_than_aligned(total: int, ranks: int) -> None:
    lengths = [len(span) for span in cut_columns(total, (1.0,) * ranks)]
    assert max(lengths) <= 1.3 * total / ranks + 1


def test_a_rank_three_times_as_quick_gets_three_times_the_columns() -> None:
    assert [len(span) for span in cut_columns(1024, (3.0, 1.0))] == [768, 256]


@given(total=st.integers(0, 500), weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=12))
def test_proportional_counts_are_off_by_less_than_one(total: int, weights: list[float]) -> None:
    counts = proportional(total, weights)
    assert sum(counts) == total
    assert all(abs(count - total * w / sum(weights)) < 1 + 1e-6 for count, w in zip(counts, weights, strict=True))


@given(
    layers=st.integers(3, 9),
    seconds=st.tuples(*[st.floats(0.5, 5)] * 3),
    extra=st.tuples(*[st.floats(0, 10)] * 3),
    room=st.tuples(*[st.integers(3, 9)] * 3),
)
def test_no_other_layer_split_has_a_quicker_slowest_stage(
    layers: int, seconds: tuple[float, ...], extra: tuple[float, ...], room: tuple[int, ...]
) -> None:
    def slowest(counts: tuple[int, ...]) -> float:
        return max(e + n * s for n, s, e in zip(counts, seconds, extra, strict=True))

    found = tuple(len(span) for span in cut_layers(layers, seconds, extra, room))
    others = [c for c in product(*[range(1, r + 1) for r in room]) if sum(c) == layers]
    assert found in others
    assert slowest(found) <= min(map(slowest, others)) + 1e-9


def _numbers(span: Span) -> range:
    return range(span.start, span.stop)
