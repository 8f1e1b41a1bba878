"""Tokenizers from the metadata of GGUF files.

The metadata names a kind (`tokenizer.ggml.model`) and, for byte-level BPE, a way to cut text before merging
(`tokenizer.ggml.pre`), which the file does not spell out: the regular expressions here are those that the models' own
tokenizer.json files have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tokenizers
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from cluster.text.chat_template import ChatTemplate
from cluster.text.tokenizer import Tokenizer, TokenizerError, TokenizerMissing, is_panic
from partitioning.checkpoint.base import CheckpointError
from partitioning.checkpoint.gguf_header import read_gguf_header

_KEY = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4  # values of token_type
_SPACE = "\u2581"
# Merges are found by cutting every token everywhere: vocabularies of 260,000 tokens have 2 million characters.
_MOST_CHARACTERS = 8_000_000

_Piece = Annotated[str, Field(max_length=256)]
_Id = Annotated[int, Field(ge=0)]


class _Metadata(BaseModel):
    """The keys that describe a tokenizer, without their beginning."""

    model_config = ConfigDict(strict=True)
    model: str
    tokens: list[_Piece]
    pre: str = "default"
    merges: list[str] | None = None
    scores: list[float] | None = None
    token_type: list[int] = []
    bos_token_id: _Id | None = None
    eos_token_id: _Id | None = None
    unknown_token_id: _Id | None = None
    padding_token_id: _Id | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool = False
    add_space_prefix: bool = True

    def named(self) -> dict[str, int]:
        """The ids of special tokens, by the names that templates have for them."""
        ids = {"bos_token": self.bos_token_id, "eos_token": self.eos_token_id}
        ids |= {"unk_token": self.unknown_token_id, "pad_token": self.padding_token_id}
        return {name: number for name, number in ids.items() if number is not None}

    def of_type(self, kind: int) -> list[str]:
        return [token for token, of in zip(self.tokens, self.token_type, strict=False) if of == kind]


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
        TokenizerError: it is damaged, of a kind that is not supported, or incomplete.
        ChatTemplateError: the template is no valid Jinja.
    """
    try:
        keys = read_gguf_header(path).metadata
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
    if _KEY + "model" not in keys or _KEY + "tokens" not in keys:
        raise TokenizerMissing(f"{path} has no tokenizer in its metadata: send token ids")
    metadata = _checked(path, {key.removeprefix(_KEY): value for key, value in keys.items() if key.startswith(_KEY)})
    try:
        backend = _backend(path, metadata)
    except TokenizerError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or is_panic(error):  # the library raises nothing narrower
            raise TokenizerError(f"{path} has a damaged tokenizer ({error}): convert the model again") from error
        raise
    template = keys.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{path}: tokenizer.chat_template is not a text: convert the model again")
    special = {name: metadata.tokens[number] for name, number in metadata.named().items()}
    return Tokenizer(backend, None if template is None else ChatTemplate(template, special), str(path))


def _checked(path: Path, keys: dict[str, object]) -> _Metadata:
    try:
        metadata = _Metadata.model_validate(keys)
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise TokenizerError(f"{path}: {_KEY}{place}: {fault['msg']}: convert the model again") from error
    tokens = metadata.tokens
    wrong = [f"{name} {number}" for name, number in metadata.named().items() if number >= len(tokens)]
    if wrong:
        raise TokenizerError(f"{path} has {len(tokens)} tokens and {wrong[0]}: convert the model again")
    if sum(map(len, tokens)) > _MOST_CHARACTERS:
        raise TokenizerError(f"{path} has tokens of more than {_MOST_CHARACTERS} characters together")
    return metadata


def _backend(path: Path, metadata: _Metadata) -> tokenizers.Tokenizer:
    if metadata.model == "gpt2":
        backend = _byte_level_bpe(path, metadata)
    elif metadata.model == "llama":
        backend = _sentencepiece_bpe(path, metadata)
    else:
        raise TokenizerError(
            f"{path} has a tokenizer of kind {metadata.model!r}, and Phalanx reads gpt2 (byte-level BPE) and llama "
            "(SentencePiece) from GGUF: serve the Hugging Face folder of the model instead"
        )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in metadata.of_type(_CONTROL)])
    backend.add_tokens([AddedToken(t, normalized=False) for t in metadata.of_type(_USER_DEFINED)])
    _add_beginning_and_end(backend, metadata)
    return backend


def _byte_level_bpe(path: Path, metadata: _Metadata) -> tokenizers.Tokenizer:
    name = metadata.pre
    pre_tokenizer = _pre_tokenizer(name)
    if pre_tokenizer is None:
        raise TokenizerError(
            f"{path} cuts text by {name!r} (tokenizer.ggml.pre), and Phalanx knows smollm, gpt-2, llama-bpe, qwen2 and "
            "deepseek-r1-qwen in GGUF: serve the Hugging Face folder of the model instead"
        )
    if metadata.merges is None:
        raise TokenizerError(f"{path} has a tokenizer without {_KEY}merges: convert the model again")
    vocab = {token: number for number, token in enumerate(metadata.tokens)}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in metadata.merges)]
    # Llama 3 takes a word that is a token as it is, whatever the merges would make of it.
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=name == "llama-bpe"))
    backend.pre_tokenizer = pre_tokenizer
    if name in ("qwen2", "deepseek-r1-qwen"):
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_bpe(path: Path, metadata: _Metadata) -> tokenizers.Tokenizer:
    tokens, scores = metadata.tokens, metadata.scores
    if scores is None or len(scores) != len(tokens):
        raise TokenizerError(f"{path} has a tokenizer without one of {_KEY}scores a token: convert the model again")
    vocab = {token: number for number, token in enumerate(tokens)}
    unknown = tokens[metadata.unknown_token_id or 0]
    model = models.BPE(vocab, _merges(vocab, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    stripped: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.add_space_prefix:
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


def _add_beginning_and_end(backend: tokenizers.Tokenizer, metadata: _Metadata) -> None:
    """Files that do not say whether prompts begin with the bos token mean what their kind is used to."""
    used_to = metadata.model == "llama" or metadata.pre == "llama-bpe"
    begins = used_to if metadata.add_bos_token is None else metadata.add_bos_token
    template, special = ["$A"], []
    if begins and (beginning := metadata.bos_token_id) is not None:
        template.insert(0, metadata.tokens[beginning])
        special.append((metadata.tokens[beginning], beginning))
    if metadata.add_eos_token and (end := metadata.eos_token_id) is not None:
        template.append(metadata.tokens[end])
        special.append((metadata.tokens[end], end))
    if special:
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
