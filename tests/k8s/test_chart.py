"""The chart as a package: it lints, packs, is of the product's version, and explains each of its values."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from k8s.spec_schema import SCHEMA, spec_schema, with_spec
from tests.k8s.helm import helm
from tests.k8s.rendering import CHART, EXAMPLES, template

_ROOT = CHART.parents[1]


def _run(*command: str) -> str:
    done = subprocess.run([str(helm()), *command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_lints(example: Path) -> None:
    assert "0 chart(s) failed" in _run("lint", "--strict", str(CHART), "--values", str(example))


def test_the_versions_are_those_of_the_product_and_its_ray(tmp_path: Path) -> None:
    product = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (product, product)
    _run("package", str(CHART), "--destination", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [f"phalanx-{product}.tgz"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert f"ray=={values['ray']['version']}" in (_ROOT / "constraints.txt").read_text().splitlines()


def test_every_value_has_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    assert len(keys) > 90
    for number in keys:
        line, before = lines[number], lines[number - 1]
        inside = line.lstrip().startswith(("- podSelector", "- namespaceSelector", "requests:", "limits:"))
        assert inside or before.lstrip().startswith("#"), f"values.yaml:{number + 1}: {line}"


def test_the_schema_has_the_specs_keys() -> None:
    schema = json.loads(SCHEMA.read_text())
    assert with_spec(schema) == schema, "the spec has changed: python -m k8s.spec_schema"


def test_an_old_kubernetes_is_refused() -> None:
    done = template(EXAMPLES[0], kubernetes="1.29")
    assert done.returncode != 0
    assert "incompatible with Kubernetes v1.29" in done.stderr


def test_the_guide_names_values_and_examples_that_there_are() -> None:
    guide = (_ROOT / "docs/kubernetes.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    values["spec"] = spec_schema()["properties"]
    named = [
        found for found in re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z_]+)+)", guide) if found.partition(".")[0] in values
    ]
    assert len(named) > 12
    for path in named:
        inside = values
        for key in path.split("."):
            assert key in inside, f"docs/kubernetes.md: {path}"
            inside = inside[key]
    for example in EXAMPLES:
        assert f"`{example.name}`" in guide
