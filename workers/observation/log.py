"""Logs of all processes: one line an event, for people or as JSON. docs/observability.md has the events and fields.

An event is a fixed message and its fields: `log.info("epoch ready", extra={"replica": 0, "seconds": 3.2})`. Prompts,
tokens and texts are never among them.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_OURS = ("cluster", "workers", "partitioning", "phalanx")
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_PLAIN = re.compile(r"[!#-<>-~]+")  # printable ASCII but for quotes and the sign between a field and its value


@dataclass(frozen=True)
class LogConfig:
    """How lines look, and from which level on Phalanx's own are written; of libraries, warnings and errors are."""

    format: LogFormat = "text"
    level: LogLevel = "info"


def set_up(config: LogConfig, process: str, **fields: object) -> None:
    """Has this process, named `process`, write to standard error; `fields` are added to every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(config.format, {"process": process, **fields}))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(config.level.upper())
    logging.captureWarnings(True)


def writes_json() -> bool:
    """Whether what this process has to say goes to a program."""
    handlers = logging.getLogger().handlers
    return any(isinstance(handler.formatter, Lines) and handler.formatter.is_json for handler in handlers)


class Lines(logging.Formatter):
    """An exception is shown by its kind and where it was raised: its own words might quote what a client sent. In text,
    that place follows on lines of its own, which are indented."""

    def __init__(self, format: LogFormat, fields: Mapping[str, object]) -> None:
        super().__init__()
        self.is_json = format == "json"
        self._fields = fields
        self._write: Callable[[dict[str, Any]], str] = _as_json if self.is_json else _as_text

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        own = {name: value for name, value in vars(record).items() if _is_field(name) and value is not None}
        fields = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            **self._fields,
            "event": record.getMessage(),
            **own,
        }
        if record.name.partition(".")[0] not in _OURS:
            fields["logger"] = record.name
        if record.exc_info and record.exc_info[0] is not None:
            fields.setdefault("error", record.exc_info[0].__name__)
            fields["stack"] = "".join(traceback.format_tb(record.exc_info[2])).rstrip()
        return self._write(fields)


def _is_field(name: str) -> bool:
    """Ray adds notes of its own to records."""
    return name not in _STANDARD and not name.startswith("_")


def _as_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, default=str)


def _as_text(fields: dict[str, Any]) -> str:
    time, level, process, event = (str(fields.pop(name)) for name in ("time", "level", "process", "event"))
    stack = fields.pop("stack", "")
    shown = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
    line = f"{time} {level.upper():7} {process}: {' '.join(event.split())} {shown}".rstrip()
    return "\n    ".join([line, *stack.splitlines()])


def _quoted(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
