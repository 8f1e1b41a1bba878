"""Text that grows token by token: never a broken character, never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.text import Detokenizer, Tokenizer, load_tokenizer
from tests.tiny_gguf import write_tokenizer_gguf
from tests.tiny_tokenizer import add_tiny_tokenizer

_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a", "ab"]


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "byte-level":
        add_tiny_tokenizer(folder)
        return load_tokenizer(folder)
    return load_tokenizer(write_tokenizer_gguf(folder / "t.gguf", _TOKENS, dict.fromkeys(_TOKENS[259:], 0.0)))


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        places = [text.find(stop, 0, end) for stop in stops]
        if found := [place for place in places if place >= 0]:
            return text[: min(found)]
    return text


@given(ids=st.lists(st.integers(0, 263), max_size=40), cuts=st.lists(st.integers(0, 40)))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_pieces_are_the_text_of_the_whole_however_it_is_cut(
    tokenizer: Tokenizer, ids: list[int], cuts: list[int]
) -> None:
    detokenizer, text, last = Detokenizer(tokenizer), "", 0
    for cut in [*sorted(cuts), len(ids)]:
        text += detokenizer.push(ids[last:cut])
        last = max(last, min(cut, len(ids)))
    text += detokenizer.finish()
    assert text == tokenizer.decode(ids)


# No tokenizer here joins these letters, so a token never holds more than one character.
@given(text=st.text("xy é東👩", max_size=30), stops=st.lists(st.text("xy é東", min_size=1, max_size=4), max_size=3))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_stop_strings_end_the_text_and_are_never_shown(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    ids = tokenizer.encode(text, add_special=False)
    detokenizer, shown = Detokenizer(tokenizer, stops), ""
    for token in ids:
        shown += detokenizer.push([token])
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
    shown += detokenizer.finish()
    assert shown == _cut(text, stops)
    assert detokenizer.stopped == any(stop in text for stop in stops)


def test_a_stop_string_over_several_tokens(tmp_path: Path) -> None:
    add_tiny_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("one. END two")
    detokenizer = Detokenizer(tokenizer, ["END", ". E"])
    pieces = [detokenizer.push([token]) for token in ids]
    assert "".join(pieces) == "one"
    assert detokenizer.stop_token_count is not None
    assert tokenizer.decode(ids[: detokenizer.stop_token_count]).endswith(". E")
    assert detokenizer.finish() == ""


def test_what_only_looked_like_a_stop_string_is_shown(tmp_path: Path) -> None:
    add_tiny_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    detokenizer = Detokenizer(tokenizer, ["<stop>"])
    assert detokenizer.push(tokenizer.encode("a <st")) == "a "
    assert detokenizer.push(tokenizer.encode("ep")) == "<step"
    assert detokenizer.push(tokenizer.encode("<sto")) == ""
    assert detokenizer.finish() == "<sto"


def test_half_a_character_at_the_end_is_a_replacement_character(tmp_path: Path) -> None:
    add_tiny_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(tokenizer.encode("é")[:1]) == ""
    assert detokenizer.finish() == "\ufffd"
