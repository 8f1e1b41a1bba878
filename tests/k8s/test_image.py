"""The image: its file copies what there is, its package is whole, and it is the one that the chart runs."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml

from tests.k8s.rendering import CHART, EXAMPLES, pods, rendered
from workers.native.build import PREBUILT

_ROOT = CHART.parents[1]
_DOCKERFILE = (_ROOT / "k8s/Dockerfile").read_text().replace("\\\n", "")


def _copied() -> list[str]:
    """What the Dockerfile takes from the build's context."""
    lines = re.findall(r"^COPY (?!--from)(.*)$", _DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def _is_sent(name: str) -> bool:
    """Whether .dockerignore leaves a file or folder of the repository's root in the context; the last match decides."""
    sent = True
    for line in (_ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(name, line.removeprefix("!")):
            sent = line.startswith("!")
    return sent


def test_the_context_has_what_the_image_copies_and_no_more() -> None:
    copied = _copied()
    assert len(copied) == len(set(copied)) >= 8
    assert {path.name for path in _ROOT.iterdir() if _is_sent(path.name)} == set(copied)


def test_what_the_image_copies_makes_the_whole_package(tmp_path: Path) -> None:
    for name in _copied():
        source = _ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tmp_path / "src").mkdir(exist_ok=True)
            shutil.copy(source, tmp_path / "src" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(tmp_path), str(tmp_path / "src")], check=True, timeout=120)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = set(wheel.namelist())
    for folder in ("partitioning", "workers", "cluster"):
        for path in (_ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h"):
                assert str(path.relative_to(_ROOT)) in packed
    assert {"phalanx/__init__.py", "phalanx/v1/inference_pb2.py"} <= packed


def test_its_python_is_one_that_the_product_takes() -> None:
    product = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    minimum = tuple(map(int, product["requires-python"].removeprefix(">=").split(".")))
    (found,) = re.findall(r"^ARG BASE=\S*python:(\d+)\.(\d+)-", _DOCKERFILE, re.MULTILINE)
    assert tuple(map(int, found)) >= minimum


def test_the_image_is_the_one_that_the_chart_runs() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    user = values["podSecurity"]["runAsUser"]
    assert f"USER {user}:{user}" in _DOCKERFILE
    for example in EXAMPLES:
        variant = yaml.safe_load(example.read_text()).get("image", {}).get("variant", "cpu")
        make = ["make", "--silent", "--dry-run", "image", f"VARIANT={variant}"]
        built = subprocess.run(make, cwd=_ROOT, capture_output=True, text=True, check=True).stdout
        images = {container["image"] for pod in pods(rendered(example)) for container in pod.containers}
        assert images == {re.findall(r"--tag (\S+)", built)[0]}


def test_it_writes_only_where_the_chart_mounts_something_and_finds_its_kernels() -> None:
    (home,) = re.findall(r"HOME=(\S+)", _DOCKERFILE)
    (kernels,) = re.findall(rf"{PREBUILT}=(\S+)", _DOCKERFILE)
    assert f"workers.native.build --into {kernels};" in _DOCKERFILE
    for pod in pods(rendered(EXAMPLES[0])):
        for container in pod.containers:
            assert home in [mount["mountPath"] for mount in container["volumeMounts"]]
