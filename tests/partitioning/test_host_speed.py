from dataclasses import replace
from pathlib import Path

import pytest

from partitioning.costs import Slice, parameter_bytes, weight_bytes
from partitioning.host_speed import host_speed
from partitioning.planner import make_plan
from partitioning.topology import local_topology
from tests.partitioning.specs import model_spec

SMOLLM2 = model_spec()


def test_figures_are_measured_once_and_anew_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "speed.json"
    first = host_speed(1, path=path)
    assert first.measured
    assert 1e8 < first.core_bandwidth <= first.host_bandwidth < 1e13
    assert 1e8 < first.core_flops < 1e15
    assert host_speed(1, path=path) == first
    assert host_speed(1, path=path, anew=True) != first


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1}', "\x00"])
def test_a_damaged_file_is_measured_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "speed.json"
    path.write_text(content)
    speed = host_speed(1, path=path)
    assert host_speed(1, path=path) == speed


def test_figures_of_another_machine_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    one = host_speed(1, path=path)
    assert host_speed(2, path=path) != one


def test_a_slower_machine_is_predicted_to_be_slower(tmp_path: Path) -> None:
    speed = host_speed(1, path=tmp_path / "speed.json")
    slow = replace(speed, core_bandwidth=speed.core_bandwidth / 4, host_bandwidth=speed.host_bandwidth / 4)
    quick, late = (make_plan(SMOLLM2, "m", local_topology(2, s), tp=2, pp=1).prediction for s in (speed, slow))
    assert late.decode_seconds > 2 * quick.decode_seconds


def test_quantised_weights_are_counted_with_their_scales() -> None:
    whole = Slice(30, 9, 3, 1536, 49152, embeds=True, samples=True)
    dense = weight_bytes(SMOLLM2, parameter_bytes("bfloat16", "dense"), whole)
    eight = weight_bytes(SMOLLM2, parameter_bytes("bfloat16", "int8"), whole)
    four = weight_bytes(SMOLLM2, parameter_bytes("bfloat16", "int4"), whole)
    assert eight / dense == pytest.approx(8.5 / 16, rel=1e-3)
    assert four < 0.75 * eight
    for weights in ("auto", "int8"):
        channels = weight_bytes(SMOLLM2, parameter_bytes("bfloat16", weights, 8 + 32 / 576), whole)
        assert 105e6 < channels - parameter_bytes("bfloat16", weights).table * whole.vocab * 576 < 108e6
