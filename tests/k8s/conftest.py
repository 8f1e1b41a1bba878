from __future__ import annotations

import pytest

from tests.k8s.helm import HelmMissing, helm


@pytest.fixture(scope="session", autouse=True)
def _helm() -> None:
    """Skips these tests, with the reason, where Helm cannot be had."""
    try:
        helm()
    except HelmMissing as error:
        pytest.skip(str(error))
