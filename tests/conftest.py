from __future__ import annotations

import signal
from pathlib import Path

import pytest

from cluster.models import resolve_model

# Whoever starts the tests in the background of a script has them ignore Ctrl-C, and what they start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, which `make setup` has fetched."""
    return resolve_model("smollm2")
