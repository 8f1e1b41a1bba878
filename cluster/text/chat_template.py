"""Chat templates: Jinja programs that come with a model, run in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplateError(ValueError):
    """The template is no valid Jinja, or refuses the messages."""


class ChatTemplate:
    """A template in the dialect of Hugging Face: `messages`, `add_generation_prompt`, the special tokens by name, and
    the functions `raise_exception` and `strftime_now`.

    Raises:
        ChatTemplateError: it is no valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the model's chat template is no valid Jinja: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], now: datetime | None = None) -> str:
        """The text of a conversation that the assistant is to continue, at the local time `now` (else this moment).
        Raises ChatTemplateError."""
        clock = (now or datetime.now()).strftime
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, strftime_now=clock, **self._special_tokens
            )
        # The template is a program of the model's author: it may fail in any way.
        except Exception as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from error


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)
