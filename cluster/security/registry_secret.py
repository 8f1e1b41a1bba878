"""The registry's secret as an operator gives it: a file, or an environment variable."""

from __future__ import annotations

import os
from pathlib import Path

from workers.security import SecurityError
from workers.security.files import read_file
from workers.security.reload import Reloaded

ENVIRONMENT = "PHALANX_REGISTRY_SECRET"
_LEAST = 32  # characters


def given_secrets(file: Path | None) -> list[str]:
    """Those in `file`, one a line, or else the one in the environment, or else none. A registry lets in who shows any
    of them; others show the first.

    Raises:
        SecurityError: one is too short, or the file cannot be read or holds none.
    """
    if file is not None:
        return _read(file)
    return [_checked(value, ENVIRONMENT)] if (value := os.environ.get(ENVIRONMENT)) else []


class ShownSecret:
    """What a gateway shows the registry, with which it was started: itself, or a file that is read again when it
    changes.

    Raises:
        SecurityError: the file cannot be read or holds no secret.
    """

    def __init__(self, secret: str | Path) -> None:
        self._secret = secret if isinstance(secret, str) else Reloaded([secret], lambda: _read(Path(secret))[0])

    @property
    def current(self) -> str:
        return self._secret if isinstance(self._secret, str) else self._secret.current


def _read(file: Path) -> list[str]:
    what = "the registry's secret"
    try:
        lines = read_file(file, what).decode("ascii").split()
    except UnicodeDecodeError:
        raise SecurityError(f"{what}: {file} holds other than ASCII characters") from None
    if not lines:
        raise SecurityError(f"{what}: {file} is empty; make one with `openssl rand -hex 32`")
    return [_checked(line, str(file)) for line in lines]


def _checked(secret: str, where: str) -> str:
    if len(secret) < _LEAST or not secret.isascii() or not secret.isprintable():
        raise SecurityError(
            f"the registry's secret in {where} has to be at least {_LEAST} printable ASCII characters; make one with "
            "`openssl rand -hex 32`"
        )
    return secret
