"""Reading the files of an operator, with errors that help."""

from __future__ import annotations

from pathlib import Path

from workers.security import SecurityError


def read_file(path: Path, what: str) -> bytes:
    """The content of a file that holds `what`. Raises SecurityError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SecurityError(f"{what}: there is no file {path}") from None
    except OSError as error:
        raise SecurityError(
            f"{what}: {path} cannot be read ({error.strerror}): the user that runs Phalanx has to be able to"
        ) from None
