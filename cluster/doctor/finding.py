"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """`text` is one line; `remedy` says what to do about it, and is empty only where all is well."""

    check: str
    level: Level
    text: str
    remedy: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def warning(check: str, text: str, remedy: str) -> Finding:
    """It works, but slowly, less safely, or not for long."""
    return Finding(check, "warning", text, remedy)


def failed(check: str, text: str, remedy: str) -> Finding:
    """A deployment would not start, or not work."""
    return Finding(check, "failed", text, remedy)
