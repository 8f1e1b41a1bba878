"""Which models may guess for which: refused by name, with the remedy, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.drafting import draft_of, resolve_draft
from partitioning.checkpoint import open_checkpoint
from partitioning.model_spec import ModelSpec
from tests.tiny_models import make_tiny
from tests.tiny_tokenizer import add_tiny_tokenizer
from workers.speculation.options import DraftError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny(tmp_path_factory.mktemp("model"), "llama")
    add_tiny_tokenizer(folder)
    return folder


def spec(folder: Path) -> ModelSpec:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.spec


def test_a_vocabulary_of_another_size_is_refused(model: Path, tmp_path: Path) -> None:
    other = make_tiny(tmp_path, "llama", vocab_size=311, num_hidden_layers=1)
    with pytest.raises(DraftError, match=r"draft_model: .* of 311 tokens, .* one of 307.*: use a draft model"):
        draft_of(spec(model), str(other), None)


def test_a_tokenizer_with_other_words_is_refused(model: Path, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path, "llama", num_hidden_layers=1)
    assert resolve_draft(str(folder), model) == folder, "it has none, and takes token ids"
    add_tiny_tokenizer(folder)
    assert resolve_draft(str(folder), model) == folder
    draft = draft_of(spec(model), str(folder), None)
    assert draft is not None
    assert draft.model == spec(folder)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"<|start|>"', '"<|begin|>"'))
    with pytest.raises(DraftError, match=r"draft_model: the tokenizer of .* is at token 306\): use a draft model"):
        resolve_draft(str(folder), model)


def test_an_early_exit_is_before_the_last_layer(model: Path) -> None:
    draft = draft_of(spec(model), None, 2)
    assert draft is not None
    assert draft.model.num_layers == 2
    with pytest.raises(DraftError, match=r"draft_layers: 3 of the 3 layers .* from 1 to 2"):
        draft_of(spec(model), None, 3)
