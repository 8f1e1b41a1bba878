from __future__ import annotations

from pathlib import Path

import pytest

from cluster.models import resolve_model


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, which `make setup` has fetched."""
    return resolve_model("smollm2")
