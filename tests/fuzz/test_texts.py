"""Tokenizers from anybody: each is refused with a TokenizerError or ChatTemplateError, or it can be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.text import ChatTemplateError, TokenizerError, load_tokenizer
from tests.fuzz.examples import examples, refused
from tests.fuzz.mutations import damaged, edited
from tests.tiny_gguf import write_tokenizer_gguf
from tests.tiny_tokenizer import CHAT_TEMPLATE, add_tiny_tokenizer

_TEXTS = ("", "the quick <|bos|> brown  123\n\n é😀", " " * 50, "\0", "a" * 1000 + "!")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    add_tiny_tokenizer(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    special = {"id": "<|bos|>", "ids": [304], "tokens": ["<|bos|>"]}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "_"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "_"},
            {"type": "Replace", "pattern": {"Regex": "x+"}, "content": "y"},
            {"type": "NFC"},
        ],
    }
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\s+(?!\S)|a+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": special},
    }
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pieces = ["▁", "a", "b", "ab", "▁ab", "é"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = {piece: -float(rank) for rank, piece in enumerate(pieces)}
    return write_tokenizer_gguf(tmp_path_factory.mktemp("gguf") / "spm.gguf", tokens, scores)


def _use(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    for text in _TEXTS:
        ids = tokenizer.encode(text)
        assert len(ids) < 10_000
        tokenizer.decode(ids)
        tokenizer.decode([0, 1, 306, 2**31], skip_special=False)
    assert tokenizer.vocab_size < 10_000
    if tokenizer.has_chat_template:
        tokenizer.chat_prompt([{"role": "user", "content": "hi"}])


def _tried(path: Path) -> bool:
    return refused(lambda: _use(path), TokenizerError, ChatTemplateError)


def _edit(file: Path, content: Any, path: Path) -> None:
    whole = file.read_text() if file.exists() else None
    try:
        file.write_text(json.dumps(content))
        _tried(path)
    finally:
        file.unlink() if whole is None else file.write_text(whole)


def test_the_files_are_valid_before_they_are_damaged(folder: Path, gguf: Path) -> None:
    assert not _tried(folder)
    assert not _tried(gguf)


@examples(150)
@given(choices=st.data())
def test_tokenizer_files(folder: Path, choices: st.DataObject) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    part = choices.draw(st.sampled_from(["normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens"]))
    if choices.draw(st.booleans()):
        content = choices.draw(edited(content))
    else:
        content[part] = choices.draw(edited(content[part]))
    _edit(file, content, folder)


@examples(60)
@given(choices=st.data())
def test_tokenizer_configurations(folder: Path, choices: st.DataObject) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    several = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "rag", "template": "x"}]
    token = {"content": "<|end|>", "lstrip": False}
    content = choices.draw(edited(config | {"chat_template": several, "eos_token": token}))
    _edit(folder / choices.draw(st.sampled_from(["tokenizer_config.json", "chat_template.json"])), content, folder)


@examples(300)
@given(choices=st.data())
def test_tokenizers_in_gguf_files(gguf: Path, choices: st.DataObject) -> None:
    whole = gguf.read_bytes()
    try:
        gguf.write_bytes(choices.draw(damaged(whole, len(whole))))
        _tried(gguf)
    finally:
        gguf.write_bytes(whole)


@examples(40)
@given(choices=st.data())
def test_templates(folder: Path, choices: st.DataObject) -> None:
    pieces = ["{%", "%}", "{{", "}}", " for m in ", "messages", "endfor", " if ", "endif", "(", ")", "[", "|", "loop"]
    words = st.sampled_from([*pieces, "set a = ", "macro m()", "m()", "'x' * 9", "|tojson", "-", ".", "__class__", "é"])
    source = choices.draw(
        st.one_of(
            st.lists(words, max_size=30).map(" ".join),
            damaged(CHAT_TEMPLATE.encode(), len(CHAT_TEMPLATE)).map(lambda content: content.decode("latin-1")),
        )
    )
    _edit(folder / "tokenizer_config.json", {"chat_template": source}, folder)


def _with(folder: Path, target: Path, **parts: Any) -> Path:
    content = json.loads((folder / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps(content | parts))
    return target


def _replacing(pattern: dict[str, str], content: str, times: int) -> dict[str, Any]:
    part = {"type": "Replace", "pattern": pattern, "content": content}
    return {"type": "Sequence", "normalizers": [part] * times}


def test_what_the_library_would_die_of_is_refused(folder: Path, tmp_path: Path) -> None:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [text, {"Sequence": {"id": "B", "type_id": 1}}]
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    for part in (
        {"normalizer": _replacing({"String": "a"}, "aa", 40)},
        {"normalizer": _replacing({"Regex": "."}, "a" * 16, 20)},
        {"post_processor": {"type": "TemplateProcessing", "single": [text] * 1000, "pair": pair, "special_tokens": {}}},
        {"model": model | {"vocab": model["vocab"] | {"zzz": 2**32 - 1}}},
        {"added_tokens": [{"id": 2**31, "content": "<|bos|>", "special": True}]},
    ):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            load_tokenizer(_with(folder, tmp_path, **part))


def test_an_expression_that_searches_for_ever_is_the_texts_fault(folder: Path, tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(b+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = load_tokenizer(_with(folder, tmp_path, pre_tokenizer=split, normalizer=None))
    with pytest.raises(TokenizerError, match="cannot take this text"):
        tokenizer.encode("b" * 50 + "!")
    assert tokenizer.encode("ab", add_special=False)
