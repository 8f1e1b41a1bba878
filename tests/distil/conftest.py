from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny_models import make_tiny
from tests.tiny_tokenizer import add_tiny_tokenizer

TEXT = torch.randint(0, 307, (40 * 16,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ends = {"bos_token_id": 304, "eos_token_id": 305}
    folder = make_tiny(tmp_path_factory.mktemp("teacher"), "llama", num_hidden_layers=4, **ends)
    add_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "tokens.jsonl"
    file.write_text(json.dumps({"token_ids": TEXT}))
    return file


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small take a hundred times as long on threads that wait for cores which other programs use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
