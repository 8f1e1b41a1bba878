from __future__ import annotations

from dataclasses import replace

import pytest

from partitioning.costs import kv_token_bytes, weight_bytes
from partitioning.devices import parse_topology
from partitioning.draft import Draft, first_layers
from partitioning.plan import PlanError
from partitioning.planner import auto_plan, make_plan
from partitioning.settings import plan_settings
from partitioning.topology import ETHERNET, Topology, cpu_node, local_topology
from tests.partitioning.specs import LLAMA_70B, LLAMA_405B, model_spec

SMOLLM2 = model_spec()


def host(ranks: int, memory_gb: float = 16, cores: int = 2) -> Topology:
    return Topology((cpu_node("host", ranks, cores, int(memory_gb * 1e9)),), ETHERNET)


def test_one_rank_holds_all_of_smollm2() -> None:
    plan = make_plan(SMOLLM2, "m", host(1), tp=1, pp=1)
    # 134,515,008 parameters, as its model card counts them, in bfloat16.
    assert plan.ranks[0].weight_bytes == 134_515_008 * 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_tensor_parallel_ranks_together_hold_the_model_and_copies_of_its_norms_and_of_a_kv_head(family: str) -> None:
    model = model_spec(family=family, tied=False)
    whole = make_plan(model, "m", host(1), tp=1, pp=1).ranks[0].weight_bytes
    halves = sum(rank.weight_bytes for rank in make_plan(model, "m", host(2), tp=2, pp=1).ranks)
    norms = 30 * (2 * 576 + (2 * 64 if family == "qwen3" else 0)) + 576
    kv_head = 30 * 2 * 64 * (576 + (family == "qwen2"))  # 5 + 4 query heads, in groups of 3
    assert halves == whole + 2 * (norms + kv_head)


def test_a_tied_head_is_held_twice_when_the_first_and_the_last_stage_differ() -> None:
    whole = make_plan(SMOLLM2, "m", host(1), tp=1, pp=1).ranks[0].weight_bytes
    stages = sum(rank.weight_bytes for rank in make_plan(SMOLLM2, "m", host(2), tp=1, pp=2).ranks)
    assert stages == whole + 49152 * 576 * 2


def test_the_stage_with_the_lm_head_gets_fewer_layers() -> None:
    plan = make_plan(SMOLLM2, "m", host(2), tp=1, pp=2)
    first, last = plan.ranks
    # The head has the parameters of eight layers, though it runs only for tokens that are sampled.
    assert 2 <= len(first.layers) - len(last.layers) <= 8


def test_a_quicker_device_gets_more_of_every_layer_and_a_quicker_stage_more_layers() -> None:
    model = replace(LLAMA_70B, num_layers=20, layer_windows=(0,) * 20)
    mixed = parse_topology("1xH100+1xA100")
    quick, slow = make_plan(model, "m", mixed, tp=2, pp=1).ranks
    assert len(quick.mlp) > 1.5 * len(slow.mlp)
    quick, slow = make_plan(model, "m", mixed, tp=1, pp=2).ranks
    assert len(quick.layers) > 1.3 * len(slow.layers)


def test_a_small_device_gets_less_when_an_even_cut_would_not_fit() -> None:
    small, large = cpu_node("small", 1, 4, 6 * 10**9), cpu_node("large", 1, 4, 20 * 10**9)
    cluster = Topology((small, large), ETHERNET)
    model = replace(LLAMA_70B, num_layers=8, layer_windows=(0,) * 8)
    for tp, pp in [(2, 1), (1, 2)]:
        plan = make_plan(model, "m", cluster, tp=tp, pp=pp)
        for rank in plan.ranks:
            assert rank.weight_bytes < cluster.node(rank.node).devices[0].memory_bytes
        assert len({rank.weight_bytes for rank in plan.ranks}) == 2


def test_stages_stay_on_a_node_and_span_nodes_only_when_they_must() -> None:
    cluster = parse_topology("4xH100", nodes=2)
    plan = make_plan(SMOLLM2, "m", cluster, tp=3, pp=2)
    assert [{rank.node for rank in plan.stage(stage)} for stage in (0, 1)] == [{"node-0"}, {"node-1"}]
    wide = make_plan(SMOLLM2, "m", cluster, tp=6, pp=1)
    assert {rank.node for rank in wide.ranks} == {"node-0", "node-1"}
    assert wide.prediction.decode_seconds > plan.prediction.decode_seconds


def test_replicas_get_devices_of_their_own_and_fit_the_weakest() -> None:
    cluster = parse_topology("2xH100,2xRTX4090")
    plan = make_plan(SMOLLM2, "m", cluster, tp=2, pp=1, replicas=2)
    assert [{node for node, _ in devices} for devices in plan.replica_devices] == [{"node-0"}, {"node-1"}]
    alone = make_plan(SMOLLM2, "m", parse_topology("2xH100"), tp=2, pp=1)
    assert plan.kv_blocks < alone.kv_blocks


def test_too_few_devices_are_counted() -> None:
    with pytest.raises(PlanError, match=r"needs 8 devices, the cluster has 4 \(1 node with 4 × CPU\): 4 are missing"):
        make_plan(SMOLLM2, "m", host(4), tp=2, pp=2, replicas=2)


def test_too_little_memory_is_refused_with_the_rank_the_bytes_and_the_remedy() -> None:
    with pytest.raises(PlanError, match=r"rank 1 \(H100\) needs .* GB .* may use 72.0 GB .*Raise tp or pp") as caught:
        make_plan(LLAMA_70B, "m", parse_topology("2xH100"), tp=1, pp=2, layer_split=[30, 50])
    assert "weights" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tp": 0, "pp": 1}, "tp must be at least 1"),
        ({"tp": 1, "pp": 31}, "pp=31 stages need as many layers"),
        ({"tp": 1, "pp": 2, "layer_split": [10, 10]}, "add up to the model's 30 layers"),
        ({"tp": 2, "pp": 1, "device_weights": [1.0, 0.0]}, "positive numbers"),
    ],
)
def test_layouts_out_of_range_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(SMOLLM2, "m", host(40), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_model_len": 9000}, "max_model_len 9000 must be from 1 to the model's 8192"),
        ({"kv_cache_tokens": 0}, "kv_cache_tokens must be at least 1"),
        ({"memory_fraction": 1.5}, "memory_fraction"),
    ],
)
def test_settings_out_of_range_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_settings(SMOLLM2, **arguments)  # type: ignore[arg-type]


def test_the_kv_cache_is_what_was_asked_for_or_what_memory_leaves() -> None:
    small = plan_settings(SMOLLM2, kv_cache_tokens=100)
    assert make_plan(SMOLLM2, "m", host(1), small, tp=1, pp=1).kv_blocks == 7  # 16 tokens each
    gpu = make_plan(LLAMA_70B, "m", parse_topology("8xH100"), tp=8, pp=1)
    kv_bytes = gpu.kv_blocks * 16 * 80 * 2 * 128 * 2  # layers, K and V, head_dim of the one KV head, bfloat16
    assert 0.6 < (kv_bytes + gpu.ranks[0].weight_bytes) / 72e9 < 1


def test_eight_bits_leave_room_for_more_tokens_and_take_less_time_to_read() -> None:
    cluster = parse_topology("2xH100")
    settings = [plan_settings(LLAMA_70B, weights="int4", kv_cache=kind) for kind in ("auto", "int8")]
    plain, eight = (make_plan(LLAMA_70B, "m", cluster, s, tp=2, pp=1) for s in settings)
    assert eight.kv_blocks / plain.kv_blocks == pytest.approx(256 / 132, rel=1e-3)
    assert eight.prediction.decode_seconds < plain.prediction.decode_seconds


def test_a_host_keeps_most_of_its_memory_for_others() -> None:
    assert make_plan(SMOLLM2, "m", host(1, memory_gb=1000), tp=1, pp=1).kv_blocks * 16 == 65536


def test_more_ranks_than_cores_can_be_planned_on_this_machine() -> None:
    small = plan_settings(SMOLLM2, max_model_len=64, kv_cache_tokens=64)
    plan = make_plan(SMOLLM2, "m", local_topology(12), small, tp=4, pp=3)
    assert min(rank.threads for rank in plan.ranks) >= 1


def test_splitting_over_a_fast_link_is_predicted_to_help_and_over_a_slow_one_to_hurt() -> None:
    short = plan_settings(LLAMA_70B, max_model_len=512)
    one = make_plan(LLAMA_70B, "m", parse_topology("1xB200"), short, tp=1, pp=1)
    fast = make_plan(LLAMA_70B, "m", parse_topology("4xB200"), short, tp=4, pp=1)
    slow = make_plan(LLAMA_70B, "m", parse_topology("1xB200", 4, network_gbit=1), short, tp=4, pp=1)
    assert fast.prediction.decode_seconds < one.prediction.decode_seconds / 2
    assert slow.prediction.prefill_seconds > one.prediction.prefill_seconds


def test_auto_picks_a_layout_that_fits_a_large_cluster_and_says_why_others_lost() -> None:
    plan = auto_plan(LLAMA_405B, "m", parse_topology("8xH100", nodes=16))
    assert plan.tp * plan.pp * 80 > 812  # GB of weights
    assert plan.tp * plan.pp * plan.replicas <= 128
    won, *lost = plan.prediction.explanation
    assert won.startswith(f"tp={plan.tp} pp={plan.pp} replicas={plan.replicas} won")
    assert sum("slower" in line or "quicker, with more devices" in line for line in lost) == 3
    assert any("do not fit" in line and "rank 0 (H100) needs" in line for line in lost)


def test_auto_finds_nothing_quicker_by_hand() -> None:
    cluster = parse_topology("4xL40S", nodes=2)
    best = auto_plan(LLAMA_70B, "m", cluster, replicas=1, concurrency=1).prediction
    for tp, pp in [(8, 1), (4, 2), (2, 4)]:
        other = make_plan(LLAMA_70B, "m", cluster, tp=tp, pp=pp).prediction
        by_hand = other.prefill_seconds + 256 * other.decode_seconds
        assert best.prefill_seconds + 256 * best.decode_seconds <= 1.02 * by_hand


def test_auto_trades_latency_for_throughput_as_more_requests_come() -> None:
    cluster = parse_topology("8xH100", nodes=2)
    model = replace(LLAMA_70B, num_layers=16, layer_windows=(0,) * 16)
    alone = auto_plan(model, "m", cluster, concurrency=1)
    crowd = auto_plan(model, "m", cluster, concurrency=2000)
    assert alone.tp > crowd.tp
    assert alone.replicas < crowd.replicas


def test_auto_uses_all_cores_of_a_host_for_one_rank() -> None:
    plan = auto_plan(SMOLLM2, "m", host(4, cores=4), replicas=1, concurrency=1)
    assert sum(rank.threads for rank in plan.ranks) == 4


def test_auto_says_which_layout_came_nearest_when_none_fits() -> None:
    with pytest.raises(PlanError, match=r"none of \d+ layouts fits; .* comes nearest: .* needs"):
        auto_plan(LLAMA_405B, "m", parse_topology("8xH100"))
    with pytest.raises(PlanError, match="9 replicas need as many devices, the cluster has 8"):
        auto_plan(SMOLLM2, "m", parse_topology("8xH100"), replicas=9)


def test_a_draft_model_takes_its_memory_from_the_first_rank() -> None:
    """Of whole blocks of 16 tokens there are as many less as the draft's weights and cache take."""
    small = Draft(model_spec(layers=8))
    plain, drafting = (plan_settings(SMOLLM2, draft=draft, max_model_len=256) for draft in (None, small))
    weights = weight_bytes(small.model, plain.stored("cpu"), small.whole)
    token = kv_token_bytes(small.model, plain.cached, small.whole)
    for ranks in (1, 2):
        room = 0.9 * 2.4e9 / ranks
        without, with_draft = (
            make_plan(SMOLLM2, "m", host(ranks, 2.4), settings, tp=ranks, pp=1).kv_blocks * 16
            for settings in (plain, drafting)
        )
        assert with_draft < without
        assert with_draft * token + weights < room
    with pytest.raises(PlanError, match=r"for the model that guesses"):
        make_plan(SMOLLM2, "m", host(1, 0.79), drafting, tp=1, pp=1)
    make_plan(SMOLLM2, "m", host(1, 0.79), plain, tp=1, pp=1)


def test_an_early_exit_takes_memory_only_where_the_rank_has_not_the_whole_model() -> None:
    exits = Draft(first_layers(SMOLLM2, 8), exits=True)
    plain, drafting = (plan_settings(SMOLLM2, draft=draft, max_model_len=256) for draft in (None, exits))
    for ranks, costs in ((1, False), (2, True)):
        without, with_exit = (
            make_plan(SMOLLM2, "m", host(ranks, 1.6), settings, tp=1, pp=ranks).kv_blocks
            for settings in (plain, drafting)
        )
        assert (with_exit < without) == costs
