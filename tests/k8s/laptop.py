"""The laptop example on machines that are network namespaces, with nothing deployed yet."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from platformdirs import user_cache_path

from cluster.models import KNOWN_MODELS
from tests.chaos.network import Machine, NoNetworks, machines
from tests.k8s.container import Image
from tests.k8s.host_container import HostContainer
from tests.k8s.release import Release
from tests.k8s.rendering import CHART, rendered
from workers.native.build import BuildError, prebuild

LAPTOP = CHART / "examples/laptop.yaml"
# Exact in every batch, and with a second worker to move to.
SETTINGS = (
    "spec.dtype=float32", "spec.max_model_len=1024", "spec.kv_cache_tokens=8192", "ray.workerGroups[0].replicas=2",
    "driver.registryTimeoutSeconds=20",
)  # fmt: skip
READY_S = 240


@contextmanager
def laptop(
    folder: Path, *settings: str, others: tuple[dict[str, Any], ...] = (), image: Image | None = None
) -> Iterator[tuple[Release, Machine]]:
    """The release, with `others` of the namespace beside its own objects, and a machine for clients.

    Without an `image` containers are of this machine's system. Skips the test where there can be no such machines."""
    if os.geteuid():
        pytest.skip("needs root, for network namespaces and mounts")
    model = KNOWN_MODELS["smollm2"]
    assert model.is_pulled
    models = folder / "models" / "models" / model.name
    models.mkdir(parents=True)
    shutil.copy(model.path, models)
    try:
        image = image or _of_this_machine()
        with machines([f"m{number}" for number in range(9)]) as made:
            for machine in made:
                subprocess.run([*machine.inside, "ip", "route", "add", "default", "dev", "eth0"], check=True)
            objects = (*rendered(LAPTOP, *SETTINGS, *settings), *others)
            release = Release(objects, made[1:], folder / "models", image, folder)
            try:
                yield release, made[0]
            finally:
                release.stop()
    except (NoNetworks, BuildError) as error:
        pytest.skip(str(error))


def _of_this_machine() -> Image:
    kernels = user_cache_path("phalanx") / "prebuilt"
    prebuild(kernels)
    return partial(HostContainer, kernels)
