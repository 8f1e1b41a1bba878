from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.clusters import ray_cluster_of


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray cluster of four cores that wants a token: the environment that reaches it."""
    with ray_cluster_of(4, tmp_path_factory.mktemp("ray")) as environment:
        yield environment
