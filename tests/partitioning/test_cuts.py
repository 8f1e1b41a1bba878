from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioning.coverage import check_plan
from partitioning.cuts import cut_columns, cut_heads, cut_layers, proportional
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


def test_nine_heads_over_two_ranks_are_cut_by_whole_kv_groups() -> None:
    assert cut_heads(9, 3, (1.0, 1.0)) == ((Span(0, 6), Span(0, 2)), (Span(6, 9), Span(2, 3)))


def test_more_ranks_than_kv_heads_share_a_kv_head_and_divide_its_query_heads() -> None:
    cut = cut_heads(9, 3, (1.0,) * 4)
    assert [len(heads) for heads, _ in cut] == [2, 1, 3, 3]
    assert [kv for _, kv in cut] == [Span(0, 1), Span(0, 1), Span(1, 2), Span(2, 3)]


def test_ranks_beyond_the_query_heads_hold_none() -> None:
    cut = cut_heads(3, 3, (1.0,) * 5)
    assert sum(len(heads) for heads, _ in cut) == 3
    assert all(len(kv) == len(heads) for heads, kv in cut)


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
