"""Tokenizers from the metadata of GGUF files.

The metadata names a kind (`tokenizer.ggml.model`) and, for byte-level BPE, a way to cut text before merging
(`tokenizer.ggml.pre`), which the file does not spell out: the regular expressions here are those that the models' own
tokenizer.json files have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from cluster.text.chat_template import ChatTemplate
from cluster.text.tokenizer import Tokenizer, TokenizerError, TokenizerMissing
from partitioning.checkpoint.gguf_header import read_gguf_header

_KEY = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4  # values of token_type
_SPACE = "\u2581"

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _cut_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer | None:
    match name:
        case "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        case "gpt-2":
            return pre_tokenizers.ByteLevel(add_prefix_space=False)
        case "llama-bpe":
            return _cut_by(_WORDS % "{1,3}")
        case "qwen2" | "deepseek-r1-qwen":
            return _cut_by(_WORDS % "")
    return None


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        TokenizerMissing: the file has none.
        TokenizerError: it is of a kind that is not supported, or incomplete.
    """
    metadata: dict[str, Any] = read_gguf_header(path).metadata
    kind = metadata.get(_KEY + "model")
    if kind is None or _KEY + "tokens" not in metadata:
        raise TokenizerMissing(f"{path} has no tokenizer in its metadata: send token ids")
    try:
        if kind == "gpt2":
            backend = _byte_level_bpe(path, metadata)
        elif kind == "llama":
            backend = _sentencepiece_bpe(metadata)
        else:
            raise TokenizerError(
                f"{path} has a tokenizer of kind {kind!r}, and Phalanx reads gpt2 (byte-level BPE) and llama "
                "(SentencePiece) from GGUF: serve the Hugging Face folder of the model instead"
            )
    except KeyError as error:
        raise TokenizerError(f"{path} has a tokenizer without {error}: convert the model again") from error
    tokens: list[str] = metadata[_KEY + "tokens"]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _of(metadata, _CONTROL)])
    backend.add_tokens([AddedToken(t, normalized=False) for t in _of(metadata, _USER_DEFINED)])
    _add_beginning_and_end(backend, metadata, tokens)
    template = metadata.get("tokenizer.chat_template")
    special = {name: tokens[number] for name, number in _named_tokens(metadata).items()}
    return Tokenizer(backend, None if template is None else ChatTemplate(template, special), str(path))


def _byte_level_bpe(path: Path, metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    name = metadata.get(_KEY + "pre", "default")
    pre_tokenizer = _pre_tokenizer(name)
    if pre_tokenizer is None:
        raise TokenizerError(
            f"{path} cuts text by {name!r} (tokenizer.ggml.pre), and Phalanx knows smollm, gpt-2, llama-bpe, qwen2 and "
            "deepseek-r1-qwen in GGUF: serve the Hugging Face folder of the model instead"
        )
    vocab = {token: number for number, token in enumerate(metadata[_KEY + "tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata[_KEY + "merges"]]
    # Llama 3 takes a word that is a token as it is, whatever the merges would make of it.
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=name == "llama-bpe"))
    backend.pre_tokenizer = pre_tokenizer
    if name in ("qwen2", "deepseek-r1-qwen"):
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_bpe(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    tokens, scores = metadata[_KEY + "tokens"], metadata[_KEY + "scores"]
    vocab = {token: number for number, token in enumerate(tokens)}
    unknown = tokens[metadata.get(_KEY + "unknown_token_id", 0)]
    model = models.BPE(vocab, _merges(vocab, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    stripped: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get(_KEY + "add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(_SPACE))
        stripped.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(stripped)
    return backend


def _merges(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the two neighbours whose union has the best score; as a list of merges, best first."""
    merges: list[tuple[float, int, str, str]] = []
    for token, number in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-scores[number], number, left, right))
    merges.sort()
    return [(left, right) for _, _, left, right in merges]


def _of(metadata: dict[str, Any], kind: int) -> list[str]:
    types = metadata.get(_KEY + "token_type", [])
    return [token for token, of in zip(metadata[_KEY + "tokens"], types, strict=False) if of == kind]


def _named_tokens(metadata: dict[str, Any]) -> dict[str, int]:
    ids = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {name: metadata[f"{_KEY}{key}_token_id"] for name, key in ids.items() if f"{_KEY}{key}_token_id" in metadata}


def _add_beginning_and_end(backend: tokenizers.Tokenizer, metadata: dict[str, Any], tokens: list[str]) -> None:
    """Files that do not say whether prompts begin with the bos token mean what their kind is used to."""
    used_to = metadata[_KEY + "model"] == "llama" or metadata.get(_KEY + "pre") == "llama-bpe"
    named = _named_tokens(metadata)
    template, special = ["$A"], []
    if metadata.get(_KEY + "add_bos_token", used_to) and "bos_token" in named:
        template.insert(0, tokens[named["bos_token"]])
        special.append((tokens[named["bos_token"]], named["bos_token"]))
    if metadata.get(_KEY + "add_eos_token", False) and "eos_token" in named:
        template.append(tokens[named["eos_token"]])
        special.append((tokens[named["eos_token"]], named["eos_token"]))
    if special:
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
