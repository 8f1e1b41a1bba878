"""Text to token ids and back."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from cluster.text.chat_template import ChatTemplate


class TokenizerError(ValueError):
    """A tokenizer that is damaged, or of a kind that is not supported. The message names the file and the remedy."""


class TokenizerMissing(TokenizerError):
    """The checkpoint has no tokenizer; it can be served by token ids."""


class ChatTemplateMissing(ValueError):
    """The model has no chat template."""


class Tokenizer:
    """A `tokenizers.Tokenizer` that also knows the bytes of each token, and the model's chat template if it has one.

    Raises:
        TokenizerError: its decoder is neither byte-level nor SentencePiece's.
    """

    def __init__(self, backend: tokenizers.Tokenizer, template: ChatTemplate | None, source: str) -> None:
        self._backend = backend
        self._template = template
        self._source = source
        kinds = _decoders(json.loads(backend.to_str()).get("decoder"))
        self._byte_level = "ByteLevel" in kinds
        if not (self._byte_level or kinds.keys() & {"ByteFallback", "Metaspace"}):
            raise TokenizerError(
                f"{source}: the tokenizer's decoder ({', '.join(kinds) or 'none'}) is neither byte-level BPE nor "
                "SentencePiece, which are the ones Phalanx knows; serve the model by token ids"
            )
        metaspace = kinds.get("Metaspace", {}).get("prepend_scheme", "never") != "never"
        self.strips_space = metaspace or kinds.get("Strip", {}).get("start", 0) > 0

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every piece, as the tokenizer writes it."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """The ids of `text`; special tokens written in it count as such. `add_special` adds those that the model wants
        around every prompt, usually a beginning-of-sequence token.

        Raises:
            TokenizerError: it cannot take this text, as where an expression of the tokenizer's would search for ever.
        """
        try:
            return self._backend.encode(text, add_special_tokens=add_special).ids
        except BaseException as error:
            if isinstance(error, Exception) or is_panic(error):
                raise TokenizerError(f"{self._source}: its tokenizer cannot take this text ({error})") from error
            raise

    def chat_prompt(self, messages: Sequence[Mapping[str, str]], now: datetime | None = None) -> list[int]:
        """The prompt that makes the model answer `messages`, each with a "role" and a "content"; `now` is the local
        time for templates that ask for it.

        Raises:
            ChatTemplateMissing: the model has no template.
            ChatTemplateError: the template refuses the messages.
        """
        if self._template is None:
            raise ChatTemplateMissing(f"{self._source} has no chat template: use Generate, with a prompt of your own")
        return self.encode(self._template.render(messages, now), add_special=False)

    def save(self, folder: Path) -> None:
        """Writes it as the files that a Hugging Face folder has: tokenizer.json, and beside it the chat template."""
        self._backend.save(str(folder / "tokenizer.json"))
        config: dict[str, str] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if self._template is not None:
            config |= {**self._template.special_tokens, "chat_template": self._template.source}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Ids the tokenizer does not know have no text."""
        text = codecs.decode(b"".join(self.token_bytes(token, skip_special) for token in ids), "utf-8", "replace")
        return text.removeprefix(" ") if self.strips_space else text

    def token_bytes(self, token: int, skip_special: bool = True) -> bytes:
        """What one token adds to the text."""
        if token in self._special:
            return b"" if skip_special else self._special[token]
        return self._pieces[token] if token < len(self._pieces) else b""

    @cached_property
    def longest_token(self) -> int:
        """In bytes: no prompt of so many tokens is longer than as many times this."""
        return max(map(len, [*self._pieces, *self._special.values()]), default=1)

    @cached_property
    def _special(self) -> dict[int, bytes]:
        added = self._backend.get_added_tokens_decoder()
        return {token: entry.content.encode() for token, entry in added.items() if entry.special}

    @cached_property
    def _pieces(self) -> list[bytes]:
        vocab = self._backend.get_vocab(with_added_tokens=True)
        pieces = [b""] * (max(vocab.values(), default=-1) + 1)
        piece_bytes = _byte_level if self._byte_level else _sentencepiece
        for piece, token in vocab.items():
            pieces[token] = piece_bytes(piece)
        for token, entry in self._backend.get_added_tokens_decoder().items():
            pieces[token] = entry.content.encode()
        return pieces


def is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library gave up: its class for that is no Exception, and cannot be imported."""
    return type(error).__name__ == "PanicException"


def _decoders(decoder: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The decoders that a tokenizer.json lists, by type."""
    if decoder is None:
        return {}
    parts = decoder.get("decoders", [decoder])
    return {part["type"]: part for part in parts}


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (Radford et al., GPT-2): printable ones stand for
    themselves, the others for those from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + place): b for place, b in enumerate(others)}


_ALPHABET = _byte_alphabet()
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level(piece: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in piece)
    except KeyError:
        return piece.encode()


def _sentencepiece(piece: str) -> bytes:
    if byte := _BYTE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    return piece.replace("\u2581", " ").encode()
