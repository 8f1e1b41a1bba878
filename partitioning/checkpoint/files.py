"""Files of a checkpoint, which may come from anybody: read within bounds, and only where they are files."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from partitioning.checkpoint.base import CheckpointError

# The index of the largest checkpoints has 10 MB. The worst 32 MB ("[[],[],…") take 1 GB once they are parsed.
MOST_JSON_BYTES = 32 << 20


def file_size(path: Path) -> int:
    """The size of a file in bytes. Raises CheckpointError for what is none: a pipe or a device might never end."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file; fetch the checkpoint again")
    return status.st_size


def read_bytes(path: Path, most: int = MOST_JSON_BYTES) -> bytes:
    """A file of at most `most` bytes. Raises CheckpointError."""
    size = file_size(path)
    if size > most:
        raise CheckpointError(f"{path} has {size} bytes, of at most {most} that such a file may have")
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_json_object(path: Path, most: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes and 200 levels. Raises CheckpointError when it is missing, not
    UTF-8 JSON, or not an object."""
    return json_object(path, read_bytes(path, most))


def json_object(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object in `content`, which is of the file `path`. Raises CheckpointError."""
    try:
        # Python's own parser follows any depth until the stack ends.
        value = from_json(content)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object; fetch the file again")
    return value


def _unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) else error
    return CheckpointError(f"{path} cannot be read ({reason}); fetch the checkpoint again")
