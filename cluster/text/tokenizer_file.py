"""tokenizer.json, looked through before the library reads it.

The library believes what it reads: it counts up to the largest id, doubles a text as often as the file says, and runs
out of memory by ending the process. Nothing that a trainer saves comes near the bounds here.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import tokenizers

from cluster.text.tokenizer import TokenizerError, is_panic
from partitioning.checkpoint.base import CheckpointError
from partitioning.checkpoint.files import json_object, read_bytes

_MOST_BYTES = 64 << 20  # those of vocabularies of 260,000 tokens have 33 MB
_MOST_ID = 1 << 22
_MOST_GROWTH = 64  # characters that one of the text may become
_MOST_ADDED = 64  # tokens around a prompt


def read_tokenizer(file: Path) -> tokenizers.Tokenizer:
    """The tokenizer in a tokenizer.json. Raises TokenizerError."""
    try:
        content = read_bytes(file, _MOST_BYTES)
        fields = json_object(file, content)
    except CheckpointError as error:
        raise TokenizerError(f"{file} is damaged ({error})") from error
    _check_ids(file, fields)
    growth = prod(_growth(part) for part in _parts(fields.get("normalizer"), "normalizers"))
    if growth > _MOST_GROWTH:
        raise TokenizerError(f"{file}: its normalizer makes texts up to {growth} times as long, which is refused")
    for part in _parts(fields.get("post_processor"), "processors"):
        if _added(part) > _MOST_ADDED:
            raise TokenizerError(f"{file}: its post_processor adds more than {_MOST_ADDED} tokens, which is refused")
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except BaseException as error:
        if isinstance(error, Exception) or is_panic(error):  # the library raises nothing narrower
            raise TokenizerError(f"{file} is damaged, or of another kind ({error}): fetch it again") from error
        raise


def _check_ids(file: Path, fields: dict[str, Any]) -> None:
    model, added = fields.get("model"), fields.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [entry.get("id") for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    for token in ids:
        if not isinstance(token, int) or not 0 <= token <= _MOST_ID:
            raise TokenizerError(f"{file} has a token id that is not a number from 0 to {_MOST_ID}: fetch it again")


def _parts(component: Any, inner: str) -> Iterator[dict[str, Any]]:
    """The components of one kind, in whatever sequences they are."""
    if not isinstance(component, dict):
        return
    yield component
    within = component.get(inner)
    for part in within if isinstance(within, list) else []:
        yield from _parts(part, inner)


def _growth(normalizer: dict[str, Any]) -> int:
    """How many characters one may become, at most."""
    pattern, content, prepend = (normalizer.get(key) for key in ("pattern", "content", "prepend"))
    if isinstance(prepend, str):
        return 1 + len(prepend)
    if not isinstance(content, str):
        return 1
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    # An expression, or an empty string, may match between all characters.
    return -(-len(content) // len(literal)) or 1 if isinstance(literal, str) and literal else 1 + len(content)


def _added(processor: dict[str, Any]) -> int:
    """How many tokens it puts around a text, at most; the text itself counts where it is repeated."""
    pieces = [piece for key in ("single", "pair") for piece in _list(processor.get(key))]
    special = processor.get("special_tokens")
    names = special.values() if isinstance(special, dict) else []
    return len(pieces) + sum(len(_list(name.get("ids"))) for name in names if isinstance(name, dict))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
