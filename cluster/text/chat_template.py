"""Chat templates: Jinja programs that come with a model, run in a sandbox in a process of its own.

The sandbox keeps a template from files and from the interpreter's insides, but neither from loops in loops nor from
"x" * 10**12, and no thread can be stopped from outside while it runs such a thing. A process can: see
`template_process`. Asking it takes 0.1 ms more than rendering here would.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

_PROGRAM = Path(__file__).with_name("template_process.py")
_SECONDS = 2.0  # for one conversation, and for reading the template
_START_SECONDS = 30.0  # for the process, on a machine that is busy
_TURN_SECONDS = 10.0  # behind other conversations
_CHARACTERS = 16 << 20  # four times the largest request
_MOST_BYTES = 12 * _CHARACTERS + 100  # of an answer: JSON writes some characters as two times six
_MEMORY_BYTES = 1 << 30
_LENGTH = struct.Struct("<I")
# Of the environment, nothing that a template should not see.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL", "VIRTUAL_ENV")


class ChatTemplateError(ValueError):
    """The template is no valid Jinja, refuses the messages, or takes more time or memory than any template needs."""


class ChatTemplate:
    """A template in the dialect of Hugging Face: `messages`, `add_generation_prompt`, the special tokens by name, and
    the functions `raise_exception` and `strftime_now`. Threads may share one.

    Raises:
        ChatTemplateError: it is no valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self.special_tokens = source, dict(special_tokens)
        self._first = {
            "source": source,
            "special_tokens": self.special_tokens,
            "seconds": _SECONDS,
            "characters": _CHARACTERS,
            "memory_bytes": _MEMORY_BYTES,
        }
        self._turn = threading.Lock()
        self._process: _Process | None = None
        with self._turn:
            self._started()

    def render(self, messages: Sequence[Mapping[str, str]], now: datetime | None = None) -> str:
        """The text of a conversation that the assistant is to continue, at the local time `now` (else this moment).
        Raises ChatTemplateError."""
        talk = {"messages": list(messages), "now": (now or datetime.now()).isoformat()}
        if not self._turn.acquire(timeout=_TURN_SECONDS):
            raise ChatTemplateError("the model's chat template is busy with other conversations: try again")
        try:
            return self._asked(self._started(), talk, "refuses these messages", 2 * _SECONDS)
        finally:
            self._turn.release()

    def _started(self) -> _Process:
        if self._process is None:
            process = self._process = _Process()
            self._asked(process, self._first, "is no valid Jinja", _START_SECONDS)
        return self._process

    def _asked(self, process: _Process, question: dict[str, Any], fault: str, seconds: float) -> str:
        answer: dict[str, str] | None = None
        try:
            answer = process.ask(question, seconds)
        finally:
            if answer is None or (question is self._first and "error" in answer):
                process.close()
                self._process = None
        if answer is None:
            raise ChatTemplateError(
                f"the model's chat template took more than {_SECONDS:.0f} s, or broke down: send other messages, or "
                "serve the model with another template"
            )
        if "error" in answer:
            raise ChatTemplateError(f"the model's chat template {fault}: {answer['error']}")
        return answer["text"]


class _Process:
    """A running template_process."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self._popen = subprocess.Popen(
            # Not the folder of the program, whose modules would hide others of the same names.
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is for the parent, whose end is the child's
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._in, self._out = self._popen.stdin, self._popen.stdout
        os.set_blocking(self._in.fileno(), False)
        self.close = weakref.finalize(self, _end, self._popen)

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, str] | None:
        """Its answer; None where the process ended, or gives none within `seconds`."""
        deadline = monotonic() + seconds
        content = json.dumps(question).encode()
        if not self._write(_LENGTH.pack(len(content)) + content, deadline):
            return None
        head = self._read(_LENGTH.size, deadline)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        body = self._read(length, deadline) if length <= _MOST_BYTES else None
        return None if body is None else json.loads(body)

    def _write(self, content: bytes, deadline: float) -> bool:
        rest = memoryview(content)
        while rest:
            if not _ready(self._in.fileno(), select.POLLOUT, deadline):
                return False
            try:
                rest = rest[os.write(self._in.fileno(), rest) :]
            except BrokenPipeError:
                return False
        return True

    def _read(self, size: int, deadline: float) -> bytes | None:
        content = bytearray()
        while len(content) < size:
            if not _ready(self._out.fileno(), select.POLLIN, deadline):
                return None
            part = os.read(self._out.fileno(), size - len(content))
            if not part:
                return None
            content += part
        return bytes(content)


def _ready(descriptor: int, event: int, deadline: float) -> bool:
    # Not select, which knows only the first 1,024 descriptors of a process.
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(max(0.0, deadline - monotonic()) * 1000))


def _end(popen: subprocess.Popen[bytes]) -> None:
    popen.kill()
    for pipe in (popen.stdin, popen.stdout):
        if pipe is not None:
            pipe.close()
    popen.wait()
