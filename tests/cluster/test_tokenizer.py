"""Tokenizers against transformers, on the real model and on tiny ones of every kind."""

from __future__ import annotations

import itertools
import json
import random
import string
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cluster.models import resolve_model
from cluster.text import ChatTemplateMissing, Tokenizer, TokenizerError, TokenizerMissing, load_tokenizer
from tests.tiny_gguf import write_tokenizer_gguf
from tests.tiny_tokenizer import add_tiny_tokenizer

_TEXTS = (
    "The capital of France is Paris.",
    "  two  spaces,\ttabs\n\nand 12345 numbers; don't won't I'll",
    "Grüße aus Köln – naïve café, 東京都, 안녕하세요, مرحبا, 👩‍👩‍👧‍👦🏳️‍🌈",
    "<|im_start|>user\nspecial tokens<|im_end|>",
    "def f(x):\n    return x ** 2  # code",
    " ",
)


@cache
def _smollm2() -> tuple[Tokenizer, object]:
    path = resolve_model("smollm2")
    return load_tokenizer(path), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.smollm2
@pytest.mark.parametrize("text", _TEXTS)
def test_smollm2_gives_the_ids_and_the_text_of_transformers(text: str) -> None:
    ours, theirs = _smollm2()
    ids = ours.encode(text)
    assert ids == theirs.encode(text)  # type: ignore[attr-defined]
    assert ours.decode(ids, skip_special=False) == text


# The model's own tokenizer takes every character of the numeric categories by itself; transformers, reading it from
# GGUF, does not split there, which shows with numerals other than the ASCII digits.
_LETTERS = st.characters(exclude_categories=("Cs", "Nd", "Nl", "No"), include_characters="0123456789")


@pytest.mark.smollm2
@given(st.text(_LETTERS, max_size=60))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_smollm2_reads_every_text_as_transformers_does(text: str) -> None:
    ours, theirs = _smollm2()
    ids = ours.encode(text)
    assert ids == theirs.encode(text)  # type: ignore[attr-defined]
    assert ours.decode(ids, skip_special=False) == theirs.decode(ids)  # type: ignore[attr-defined]


@pytest.mark.smollm2
def test_smollm2_chat_prompt_is_that_of_transformers() -> None:
    ours, theirs = _smollm2()
    for messages in (
        [{"role": "user", "content": "Hi"}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a < b & c"},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": "東京?"},
        ],
    ):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)  # type: ignore[attr-defined]
        assert ours.chat_prompt(messages) == expected


def test_a_folder_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    add_tiny_tokenizer(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in (*_TEXTS, "<|start|>user\nhello<|end|>"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text), skip_special=False) == text
    messages = [{"role": "user", "content": "hi there"}]
    assert ours.chat_prompt(messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert ours.vocab_size == 307


def test_special_tokens_have_text_only_when_asked_for(tmp_path: Path) -> None:
    add_tiny_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("<|start|>hello<|end|>")
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special=False) == "<|start|>hello<|end|>"


def test_bytes_that_are_no_character_become_replacement_characters(tmp_path: Path) -> None:
    add_tiny_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("é")
    assert len(ids) == 2
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode([99999]) == ""


def test_a_tokenizer_saved_with_truncation_does_not_cut_prompts(tmp_path: Path) -> None:
    add_tiny_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(content))
    assert len(load_tokenizer(tmp_path).encode("x" * 50)) == 25 + 25  # 'xx' is no merge


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerMissing, match=r"tokenizer\.json.*save_pretrained"):
        load_tokenizer(tmp_path)
    add_tiny_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text()[:1000])
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path)
    add_tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(TokenizerError, match="not an object"):
        load_tokenizer(tmp_path)


def test_a_decoder_that_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    add_tiny_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    file.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="WordPiece"):
        load_tokenizer(tmp_path)


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    add_tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ChatTemplateMissing, match="use Generate"):
        load_tokenizer(tmp_path).chat_prompt([{"role": "user", "content": "x"}])


def _reference_spm(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE by its definition: join the best-scored neighbours, the leftmost of equals."""
    pieces = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        best = max(
            ((scores[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in scores),
            default=None,
        )
        if best is None:
            return pieces
        i = -best[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def test_sentencepiece_of_a_gguf_joins_by_score(tmp_path: Path) -> None:
    rng = random.Random(3)
    letters = string.ascii_lowercase[:6]
    words = {"".join(rng.choices(letters + "\u2581", k=rng.randint(2, 4))) for _ in range(150)}
    scores = dict.fromkeys(letters + "▁", -1000.0)
    scores |= {word: -float(rank) for rank, word in enumerate(sorted(words, key=lambda w: rng.random()))}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *scores]
    file = write_tokenizer_gguf(tmp_path / "spm.gguf", tokens, scores)
    tokenizer = load_tokenizer(file)
    for _ in range(200):
        text = "".join(rng.choices(letters + " ", k=rng.randint(1, 30)))
        ids = tokenizer.encode(text)
        assert ids[0] == 1  # <s>
        assert [tokens[i] for i in ids[1:]] == _reference_spm(text, scores)
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode("é東")) == "é東"  # by bytes


def test_a_gguf_of_an_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    file = write_tokenizer_gguf(tmp_path / "odd.gguf", ["<unk>", "a"], {"a": 0.0}, model="bert")
    with pytest.raises(TokenizerError, match="bert"):
        load_tokenizer(file)
