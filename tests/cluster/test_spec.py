"""Deployments, from YAML and from options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.spec import DeploymentSpec, SpecError


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("model: smollm2\ntp: 3\nlayer_split: [20, 10]\npp: 2\n")
    spec = DeploymentSpec.read(file, tp=2)
    assert (spec.tp, spec.pp, spec.layer_split) == (2, 2, (20, 10))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "model: Field required"),
        ({"tp": 0}, "tp: .*greater than or equal to 1"),
        ({"traces": "collector:4317"}, r"traces: .*\^https\?"),
        ({"tpp": 2}, "tpp: Extra inputs"),
        ({"name": "Not A Name"}, "name: "),
        ({"dtype": "int3"}, "dtype: "),
        ({"kv_cache": "int4"}, "kv_cache: Input should be 'auto' or 'int8'"),
        ({"listen": "50051"}, "listen: "),
        ({"memory_fraction": 1.5}, "memory_fraction: "),
        ({"auto": True, "tp": 2}, "auto chooses tp"),
        ({"speculation": "draft"}, "needs draft_model"),
        ({"speculation": "early-exit"}, "needs draft_layers"),
        ({"speculation": "early-exit", "draft_layers": 0}, "draft_layers: "),
        ({"draft_model": "small"}, "draft_model goes with speculation: draft"),
        ({"speculation": "draft", "draft_model": "small", "draft_layers": 2}, "draft_layers goes with"),
    ],
)
def test_a_wrong_key_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        DeploymentSpec.of({"model": "smollm2", **fields} if fields else {})


@pytest.mark.parametrize(
    ("content", "message"), [(b"- a", "YAML mapping"), (b"a: [", "cannot read"), (b"\xff\xfe\xfa", "cannot read")]
)
def test_a_file_that_is_no_spec(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "spec.yaml"
    file.write_bytes(content)
    with pytest.raises(SpecError, match=message):
        DeploymentSpec.read(file)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot read"):
        DeploymentSpec.read(tmp_path / "no.yaml")


def test_it_survives_the_way_to_the_coordinator() -> None:
    spec = DeploymentSpec.of({"model": "/m", "layer_split": [1, 2], "dtype": "float32"})
    assert DeploymentSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(("given", "seconds"), [(90, 90), ("10m", 600), ("1.5h", 5400), ("30s", 30), ("250ms", 0.25)])
def test_durations_have_units(given: object, seconds: float) -> None:
    assert DeploymentSpec.of({"model": "m", "wait_for_devices": given}).wait_for_devices == seconds


@pytest.mark.parametrize("given", ["soon", -1, "10 m"])
def test_what_is_no_duration_is_refused(given: object) -> None:
    with pytest.raises(SpecError, match="wait_for_devices"):
        DeploymentSpec.of({"model": "m", "wait_for_devices": given})


@pytest.mark.parametrize("written", ["off", "'off'", "false"])
def test_speculation_is_switched_off_as_yaml_writes_it(tmp_path: Path, written: str) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(f"model: m\nspeculation: {written}\n")
    assert DeploymentSpec.read(file).speculation == "off"
    assert DeploymentSpec.of({"model": "m"}).speculation == "ngram"
    with pytest.raises(SpecError, match="speculation"):
        DeploymentSpec.of({"model": "m", "speculation": True})


def test_objectives_are_durations_and_promise_something() -> None:
    spec = DeploymentSpec.of({"model": "m", "objectives": {"ttft": "1s", "tpot": "50ms"}})
    assert spec.objectives is not None
    assert (spec.objectives.ttft, spec.objectives.tpot) == (1.0, 0.05)
    with pytest.raises(SpecError, match=r"objectives\.tpot"):
        DeploymentSpec.of({"model": "m", "objectives": {"tpot": 0}})
