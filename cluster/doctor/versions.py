"""Which Python, libraries and Phalanx a node runs; those of all nodes have to be the same."""

from __future__ import annotations

import hashlib
import platform
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.doctor.finding import Finding, failed, ok, warning

_CHECK = "versions"
_ROOT = Path(__file__).resolve().parents[2]
_OURS = ("cluster", "workers", "partitioning")
_SOURCES = {".py", ".cpp", ".h"}
_LIBRARIES = ("torch", "ray", "grpcio", "protobuf", "numpy")
_MUST_AGREE = ("python", "torch", "ray", "phalanx")
_REMEDY = "install the same on every node: pip install --constraint constraints.txt . with one Python, or one image"


def versions() -> dict[str, str]:
    """Of this node; a library that is missing is left out."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "phalanx": _own_version()}


def own_findings(found: Mapping[str, str]) -> list[Finding]:
    """What can be said of one node by itself."""
    missing = [name for name in _LIBRARIES if name not in found]
    if missing:
        return [failed(_CHECK, f"not installed: {', '.join(missing)}", "pip install --constraint constraints.txt .")]
    return [ok(_CHECK, ", ".join(f"{name} {text}" for name, text in found.items()))]


def differences(nodes: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """What is not the same on all nodes."""
    findings = []
    for name in dict.fromkeys(name for found in nodes.values() for name in found):
        by_version: dict[str, list[str]] = defaultdict(list)
        for node, found in nodes.items():
            by_version[found.get(name, "missing")].append(node)
        if len(by_version) > 1:
            text = f"{name} differs: " + "; ".join(f"{v} on {', '.join(on)}" for v, on in by_version.items())
            findings.append((failed if name in _MUST_AGREE else warning)(_CHECK, text, _REMEDY))
    return findings or [ok(_CHECK, f"the same on all {len(nodes)} nodes")]


@cache
def _own_version() -> str:
    """The release and a digest of the sources, as two trees of one release may differ."""
    digest = hashlib.sha256()
    for folder in _OURS:
        for path in sorted(path for path in (_ROOT / folder).rglob("*") if path.suffix in _SOURCES):
            digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
    try:
        release = version("phalanx-inference")
    except PackageNotFoundError:
        release = "not installed"  # a source tree, as of `ray job submit --working-dir .`
    return f"{release} ({digest.hexdigest()[:8]})"
