"""The process that runs a chat template: jinja2's sandbox, with the kernel's limits around it.

A frame on standard input or output is a little-endian u32 length and that many bytes of JSON. The first one in has the
limits, the template and its special tokens, every further one a conversation; each is answered by {"text": …} or
{"error": …}. Whatever takes longer than the limit ends the process, also where the interpreter never comes back from
one operation (2**10**10), and so does the end of the input.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

_LENGTH = struct.Struct("<I")


def main() -> None:
    asked = _receive()
    seconds, most = asked["seconds"], asked["characters"]
    resource.setrlimit(resource.RLIMIT_AS, (asked["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with _Deadline(seconds):
        try:
            template = _environment().from_string(asked["source"])
            answer = {"text": ""}
        except Exception as error:
            answer = {"error": _said(error)}
    _send(answer)
    while True:
        talk = _receive()
        with _Deadline(seconds):
            try:
                answer = {"text": _render(template, talk, asked["special_tokens"], most)}
            # The template is a program of the model's author: it may fail in any way.
            except Exception as error:
                answer = {"error": _said(error)}
        _send(answer)


class _Deadline:
    """Ends the process when its time is up: the signal has no handler that an operation in C could keep waiting."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment


def _render(template: jinja2.Template, talk: Any, special_tokens: dict[str, str], most: int) -> str:
    clock = datetime.fromisoformat(talk["now"]).strftime
    pieces, size = [], 0
    for piece in template.generate(
        messages=talk["messages"], add_generation_prompt=True, strftime_now=clock, **special_tokens
    ):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise ValueError(f"it makes more than {most} characters of them")
    return "".join(pieces)


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:1000]


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _receive() -> Any:
    head = sys.stdin.buffer.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        sys.exit()
    return json.loads(sys.stdin.buffer.read(*_LENGTH.unpack(head)))


def _send(answer: dict[str, str]) -> None:
    content = json.dumps(answer).encode()
    sys.stdout.buffer.write(_LENGTH.pack(len(content)) + content)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
