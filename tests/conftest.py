from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Triton looks when it is imported whether its kernels are to be interpreted, on the CPU. Every test may be the first.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from cluster.models import resolve_model
from tests.tiny_models import make_tiny
from tests.tiny_tokenizer import add_tiny_tokenizer
from workers.native.build import OFF, SWITCH
from workers.native.library import library
from workers.observation.log import Lines

# Whoever starts the tests in the background of a script has them ignore Ctrl-C, and what they start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logs_end_with_their_test() -> Iterator[None]:
    """A command that runs in this process sets up logs, to a standard error that is closed after the test."""
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler.formatter, Lines):
            root.removeHandler(handler)


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where the native library cannot be had."""
    monkeypatch.setenv(SWITCH, OFF)
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, which `make setup` has fetched."""
    return resolve_model("smollm2")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of random weights that talks: with a tokenizer and a chat template."""
    folder = make_tiny(tmp_path_factory.mktemp("model"), "llama", bos_token_id=304, eos_token_id=305)
    add_tiny_tokenizer(folder)
    return folder
