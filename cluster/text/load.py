"""The tokenizer and the chat template of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.text.chat_template import ChatTemplate, ChatTemplateError
from cluster.text.gguf import gguf_tokenizer
from cluster.text.tokenizer import Tokenizer, TokenizerError, TokenizerMissing
from cluster.text.tokenizer_file import read_tokenizer
from partitioning.checkpoint.base import CheckpointError
from partitioning.checkpoint.files import read_bytes, read_json_object

_MOST_TEMPLATE_BYTES = 1 << 20


class _Token(BaseModel):
    model_config = ConfigDict(strict=True)
    content: str


class _NamedTemplate(BaseModel):
    """Of several templates, by purpose."""

    model_config = ConfigDict(strict=True)
    name: str
    template: str


class _Templates(BaseModel):
    """chat_template.json."""

    model_config = ConfigDict(strict=True)
    chat_template: str | list[_NamedTemplate] | None = None


class _Config(_Templates):
    """What counts of tokenizer_config.json."""

    bos_token: str | _Token | None = None
    eos_token: str | _Token | None = None
    unk_token: str | _Token | None = None
    pad_token: str | _Token | None = None

    def special(self) -> dict[str, str]:
        """The special tokens that there are, by name."""
        tokens = {name: getattr(self, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        texts = {name: token.content if isinstance(token, _Token) else token for name, token in tokens.items()}
        return {name: text for name, text in texts.items() if text is not None}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder (tokenizer.json; the chat template from tokenizer_config.json,
    chat_template.jinja or chat_template.json) or of a GGUF file (from its metadata).

    Raises:
        TokenizerMissing: there is none.
        TokenizerError: it is damaged, or of a kind that is not supported.
        ChatTemplateError: the template is no valid Jinja.
    """
    path = Path(path)
    try:
        return _from_folder(path) if path.is_dir() else gguf_tokenizer(path)
    except ChatTemplateError as error:
        raise ChatTemplateError(f"{path}: {error}") from error


def _from_folder(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise TokenizerMissing(
            f"{folder} has no tokenizer.json: save the tokenizer there with transformers "
            "(AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)), or send token ids"
        )
    backend = read_tokenizer(file)
    # Saved by its trainer: prompts must neither be cut nor filled up.
    backend.no_truncation()
    backend.no_padding()
    config = _read(_Config, folder / "tokenizer_config.json")
    source = _template(folder, config)
    return Tokenizer(backend, None if source is None else ChatTemplate(source, config.special()), str(folder))


def _template(folder: Path, config: _Config) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return read_bytes(jinja, _MOST_TEMPLATE_BYTES).decode()
        except ValueError as error:
            raise TokenizerError(f"{jinja} cannot be read ({error}): fetch it again") from error
    template = _read(_Templates, folder / "chat_template.json").chat_template or config.chat_template
    if isinstance(template, list):
        template = {entry.name: entry.template for entry in template}.get("default")
    return template


_Fields = TypeVar("_Fields", bound=BaseModel)


def _read(kind: type[_Fields], file: Path) -> _Fields:
    """The fields in a JSON file; none where it does not exist."""
    if not file.is_file():
        return kind()
    try:
        return kind.model_validate(read_json_object(file))
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise TokenizerError(f"{file}: {place}: {fault['msg']}: fetch it again") from error
