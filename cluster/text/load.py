"""The tokenizer and the chat template of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from cluster.text.chat_template import ChatTemplate
from cluster.text.gguf import gguf_tokenizer
from cluster.text.tokenizer import Tokenizer, TokenizerError, TokenizerMissing

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder (tokenizer.json; the chat template from tokenizer_config.json,
    chat_template.jinja or chat_template.json) or of a GGUF file (from its metadata).

    Raises:
        TokenizerMissing: there is none.
        TokenizerError: it is damaged, or of a kind that is not supported.
        ChatTemplateError: the template is no valid Jinja.
    """
    path = Path(path)
    return _from_folder(path) if path.is_dir() else gguf_tokenizer(path)


def _from_folder(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise TokenizerMissing(
            f"{folder} has no tokenizer.json: save the tokenizer there with transformers "
            "(AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)), or send token ids"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{file} is damaged, or of another kind ({error}): fetch it again") from error
    # Saved by its trainer: prompts must neither be cut nor filled up.
    backend.no_truncation()
    backend.no_padding()
    config = _json(folder / "tokenizer_config.json")
    special = {name: _content(config[name]) for name in _SPECIAL if config.get(name) is not None}
    source = _template(folder, config)
    return Tokenizer(backend, None if source is None else ChatTemplate(source, special), str(folder))


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    template = _json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(template, list):
        # Several, by purpose.
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{file} is not JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{file} is not a JSON object: fetch it again")
    return content


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
