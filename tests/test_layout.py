"""The shape of the code: what may import what, how long a file may be, and that the stubs are those of the protocol."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_FOLDERS = ("cluster", "workers", "partitioning", "proto/phalanx", "benchmarks", "tests")
_GENERATED = "_pb2"

# Each folder knows those below it alone.
_FORBIDDEN = {
    "partitioning": {"workers", "cluster", "ray", "grpc", "phalanx", "pickle"},
    "workers": {"cluster", "ray", "pickle"},
    "cluster": {"tests", "pickle"},
    "proto/phalanx": {"cluster", "workers", "partitioning", "ray", "torch", "numpy", "pickle"},
}


def _files(folder: str) -> Iterator[Path]:
    return (path for path in sorted((_ROOT / folder).rglob("*.py")) if _GENERATED not in path.name)


def _imports(path: Path) -> set[str]:
    """The first names of all modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("folder", _FORBIDDEN)
def test_dependencies_point_one_way(folder: str) -> None:
    wrong = {str(path): found for path in _files(folder) if (found := _imports(path) & _FORBIDDEN[folder])}
    assert not wrong


def test_files_stay_readable() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for f in _FOLDERS for path in _files(f)}
    assert len(lengths) > 80
    assert {str(path): length for path, length in lengths.items() if length > 400} == {}


def test_the_stubs_are_those_of_the_protocol(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "proto/generate.py", str(tmp_path)], cwd=_ROOT, check=True)
    generated = {path.name: path.read_text() for path in (tmp_path / "phalanx/v1").iterdir()}
    assert len(generated) == 12
    for name, content in generated.items():
        assert (_ROOT / "proto/phalanx/v1" / name).read_text() == content, f"{name} is stale: make proto"


def test_the_client_needs_neither_torch_nor_ray() -> None:
    code = "import sys, phalanx; assert not {'torch', 'ray', 'numpy', 'cluster', 'workers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=_ROOT / "proto", check=True)


@pytest.mark.parametrize("module", ["cluster.cli", "cluster.gateway.server", "cluster.lifecycle.serving"])
def test_only_ranks_wait_for_torch_and_only_who_traces_for_opentelemetry(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'opentelemetry'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=_ROOT, check=True)
