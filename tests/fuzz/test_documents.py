"""Specs, plans and step plans: a clear refusal, or something that holds together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.spec import DeploymentSpec, SpecError
from partitioning.coverage import check_plan
from partitioning.devices import parse_topology
from partitioning.plan import PlanError
from partitioning.plan_json import plan_from_json, plan_to_json
from partitioning.planner import make_plan
from tests.fuzz.examples import examples, refused
from tests.fuzz.mutations import damaged, edited
from tests.partitioning.specs import model_spec
from workers.request import SamplingParams
from workers.step_plan import ADMISSION, Kind, StepPlan, admission

_SPEC = {"model": "m", "tp": 2, "layer_split": [1, 2], "memory_fraction": 0.5, "listen": "h:1", "dtype": "float32"}
_PLAN = json.loads(plan_to_json(make_plan(model_spec(layers=3), "m", parse_topology("4xH100"), tp=2, pp=2, replicas=1)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spec") / "spec.yaml"


def _read(file: Path) -> None:
    spec = DeploymentSpec.read(file)
    assert DeploymentSpec.model_validate_json(spec.model_dump_json()) == spec


@examples(200)
@given(choices=st.data())
def test_specs(file: Path, choices: st.DataObject) -> None:
    written = st.one_of(
        edited(_SPEC).map(lambda spec: yaml.safe_dump(spec).encode()),
        damaged(yaml.safe_dump(_SPEC).encode(), 100),
        st.text("&*!<>:-[]{}|?,# \n'\"a0.e+~=", max_size=60).map(str.encode),
    )
    file.write_bytes(choices.draw(written))
    refused(lambda: _read(file), SpecError)


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nmodel: *b",
        "a: &a {x: 1}\nmodel: m\n<<: [*a, *a]",
        "&a [*a]",
        "[" * 100_000,
        "- " * 20_000,
        "{a: " * 10_000,
        "model: m\ntp: 2001-99-99",
        "model: m\ntp: " + "9" * 5000,
        "model: m\nrecovery_s: .inf",
        "model: m\nmax_stretch: .nan",
        "model: m\ntp: 1e400",
        "model: m\nmax_running: 99999999999",
        "model: !!python/object/apply:os.system [x]",
        "#" * (2 << 20),
    ],
)
def test_yaml_that_is_no_spec(file: Path, content: str) -> None:
    file.write_text(content)
    assert refused(lambda: _read(file), SpecError)


@examples(300)
@given(edited(_PLAN))
def test_plans(document: object) -> None:
    refused(lambda: check_plan(plan_from_json(json.dumps(document))), PlanError)


def _step() -> StepPlan:
    return StepPlan(
        kind=Kind.RUN,
        step=7,
        admissions=np.array([admission(0, 3, SamplingParams())], dtype=ADMISSION),
        rows=np.array([[0, 0, 3, 1], [1, 5, 1, 1]], dtype=np.int32),
        block_updates=np.array([[0, 0, 4]], dtype=np.int32),
        tokens=np.array([5, 6, 7, 8], dtype=np.int32),
    )


@examples(500)
@given(damaged(_step().pack().tobytes(), 400))
def test_step_plans(content: bytes) -> None:
    words = np.frombuffer(content[: len(content) // 4 * 4], dtype=np.int32)

    def read() -> None:
        plan = StepPlan.unpack(words)
        assert plan.rows.min(initial=0) >= 0
        assert plan.rows[:, 2].sum(dtype=np.int64) == len(plan.tokens)
        assert np.array_equal(plan.pack()[:7], words[:7])

    refused(read, ValueError)
