from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from partitioning.devices import parse_topology
from partitioning.plan import PlanError
from partitioning.plan_json import plan_from_json, plan_to_json
from partitioning.plan_table import plan_table
from partitioning.planner import auto_plan, make_plan
from tests.partitioning.specs import LLAMA_70B, model_spec

CLUSTER = parse_topology("4xH100", nodes=2)
PLAN = make_plan(model_spec(), "models/m", CLUSTER, tp=2, pp=2, replicas=2)


def test_a_plan_survives_json() -> None:
    explained = auto_plan(LLAMA_70B, "m", CLUSTER)
    assert plan_from_json(plan_to_json(PLAN)) == PLAN
    assert plan_from_json(plan_to_json(explained)) == explained


def _edited(path: tuple[str | int, ...], value: Any) -> str:
    """PLAN's JSON with one value changed."""
    document = json.loads(plan_to_json(PLAN))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(document)


def test_moving_a_cut_by_hand_on_both_sides_is_accepted() -> None:
    document = json.loads(plan_to_json(PLAN))
    for stage in (0, 2):
        document["ranks"][stage]["mlp"]["stop"] = document["ranks"][stage + 1]["mlp"]["start"] = 704
    assert [len(rank.mlp) for rank in plan_from_json(json.dumps(document)).ranks] == [704, 832, 704, 832]


def test_heads_cut_by_hand_into_whole_groups_are_accepted() -> None:
    document = json.loads(plan_to_json(PLAN))
    for rank in document["ranks"]:
        kv = [(0, 2), (2, 3)][rank["tp_rank"]]
        for name, size in (("kv_heads", 1), ("heads", 3)):
            rank[name]["start"], rank[name]["stop"] = (edge * size for edge in kv)
    ranks = plan_from_json(json.dumps(document)).ranks
    assert [(len(rank.heads), len(rank.kv_heads)) for rank in ranks] == [(6, 2), (3, 1)] * 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("tp",), 3, "needs 6 ranks, the plan has 4"),
        (("ranks", 1, "tp_rank"), 0, "entry 1 should have"),
        (("ranks", 0, "mlp", "stop"), 700, r"stage 0: MLP columns: \[768, 1536\) should begin at 700"),
        (("ranks", 1, "mlp", "stop"), 1500, "slices end at 1500, there are 1536"),
        (("ranks", 1, "layers", "stop"), 20, "layers of rank 1 differ"),
        (("ranks", 0, "heads", "stop"), 6, "query heads"),
        (("ranks", 1, "kv_heads", "start"), 2, r"need the KV heads they read .* \[1, 3\), got KV heads \[2, 3\)"),
        (("ranks", 3, "vocab", "stop"), 49000, "vocabulary rows"),
        (("ranks", 0, "mlp", "start"), -1, "0 <= start <= stop"),
        (("ranks", 0, "device"), "cuda:3", "replica_devices"),
        (("replica_devices", 1), [["node-0", "cuda:0"]] * 4, "given to more than one rank"),
        (("replica_devices",), [], "at least one replica"),
        (("kv_blocks",), 0, "at least 1"),
        (("kv_cache",), "int4", "kv_cache: Input should be 'auto' or 'int8'"),
        (("kv_blocks",), "many", "kv_blocks: Input should be a valid integer"),
        (("model", "family"), "gpt5", "model.family"),
        (("layersplit",), 1, "layersplit: Unexpected keyword argument"),
        (("ranks", 0, "head"), 1, "ranks.0.head: Unexpected keyword argument"),
    ],
)
def test_an_edit_that_breaks_the_plan_is_named(path: tuple[str | int, ...], value: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_from_json(_edited(path, value))


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(PlanError, match="not a plan"):
        plan_from_json("tp: 2")


def test_the_table_shows_every_rank_uncut() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(plan_table(PLAN))
    text = console.export_text()
    assert "…" not in text
    for cell in ("node-0", "cuda:3", "0–4", "5–8", "768–1535", "24576–49151"):
        assert cell in text
    assert text.count("node-1") == 1  # the second replica's devices
