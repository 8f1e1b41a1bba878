from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cluster.commands.plan import plan
from partitioning.plan import PlanError
from partitioning.plan_json import plan_from_json
from tests.tiny_models import make_tiny

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "dtype": "bfloat16",
}


@pytest.fixture
def bare_config(tmp_path: Path) -> Path:
    """A 70B model's configuration without weights."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def _run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(plan)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_plan_for_a_cluster_one_does_not_have_needs_no_weights(bare_config: Path) -> None:
    result = _run(bare_config, "--auto", "--nodes", "16", "--devices", "8xH100")
    assert result.exit_code == 0, result.output
    assert "node-15" in result.stdout
    assert "won among" in result.stdout
    assert "do not fit" in result.stdout


def test_json_on_standard_output_is_a_plan(tmp_path: Path) -> None:
    checkpoint = make_tiny(tmp_path / "tiny", "qwen3")
    result = _run(checkpoint, "--tp", "2", "--pp", "2", "--layer-split", "2,1", "--kv-cache-tokens", "64", "--json")
    assert result.exit_code == 0, result.output
    made = plan_from_json(result.stdout)
    assert (made.tp, made.pp, made.model_path) == (2, 2, str(checkpoint))
    assert [len(rank.layers) for rank in made.ranks] == [2, 2, 1, 1]


def test_the_kv_cache_is_part_of_the_plan(bare_config: Path) -> None:
    result = _run(bare_config, "--tp", "4", "--devices", "8xH100", "--kv-cache", "int8", "--json")
    assert plan_from_json(result.stdout).kv_cache == "int8"
    assert "KV cache int8" in _run(bare_config, "--tp", "4", "--devices", "8xH100", "--kv-cache", "int8").stdout


def test_output_writes_the_same_plan_to_a_file(bare_config: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    result = _run(bare_config, "--tp", "3", "--devices", "4xH200", "--output", file)
    assert "28672" not in result.stdout  # a table, with the last column's number
    assert "28671" in result.stdout
    assert plan_from_json(file.read_bytes()).tp == 3


def test_a_plan_that_does_not_fit_is_an_error(bare_config: Path) -> None:
    result = _run(bare_config, "--tp", "2", "--devices", "8xRTX4090")
    assert isinstance(result.exception, PlanError)
    assert "rank 0 (RTX4090) needs" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--auto", "--tp", "2"],
        ["--nodes", "2"],
        ["--network-gbit", "10"],
        ["--layer-split", "a,b"],
        ["--dtype", "int8"],
        ["--kv-cache", "int4"],
    ],
)
def test_flags_that_contradict_each_other_are_refused(bare_config: Path, arguments: list[str]) -> None:
    assert _run(bare_config, *arguments).exit_code == 2


HUGE = "100000000000"


@pytest.mark.parametrize("option", ["--tp", "--pp", "--replicas", "--nodes", "--concurrency"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_counts_below_one_are_refused_by_option(bare_config: Path, option: str, value: str) -> None:
    assert _run(bare_config, option, value).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tp", HUGE], "ranks on one host are more than"),
        (["--pp", HUGE], "ranks on one host are more than"),
        (["--replicas", HUGE], "ranks on one host are more than"),
        (["--devices", f"{HUGE}xcpu"], "devices on a node are more than"),
        (["--devices", f"{HUGE}xH100"], "devices on a node are more than"),
        (["--devices", "8xH100", "--nodes", HUGE], "lower the number of nodes or devices"),
        (["--devices", "8xH100", "--network-gbit", "nan"], "a number above 0"),
        (["--devices", "8xH100", "--network-gbit", "inf"], "a number above 0"),
        (["--max-model-len", "0"], "max_model_len 0 must be from 1"),
        (["--kv-cache-tokens", "-1"], "kv_cache_tokens must be at least 1"),
    ],
)
def test_figures_out_of_range_are_plan_errors(bare_config: Path, arguments: list[str], message: str) -> None:
    result = _run(bare_config, *arguments)
    assert isinstance(result.exception, PlanError)
    assert message in str(result.exception)


def test_an_output_that_cannot_be_written_is_refused(bare_config: Path, tmp_path: Path) -> None:
    result = _run(bare_config, "--tp", "2", "--devices", "8xH200", "--output", tmp_path / "missing" / "plan.json")
    assert result.exit_code == 2
    assert "cannot write" in result.output
