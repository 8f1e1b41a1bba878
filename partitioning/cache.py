"""Where this machine keeps what is fetched, compiled or measured once."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile

from platformdirs import user_cache_path

PLACE = "PHALANX_CACHE"  # the environment variable that names another folder


class CacheError(RuntimeError):
    """The cache cannot be written. The message names the cause and the remedy."""


def cache_folder() -> Path:
    """$PHALANX_CACHE where that is set, otherwise the user's cache folder. It need neither be there nor writable: pods
    mount one that was filled before."""
    return Path(os.environ.get(PLACE) or user_cache_path("phalanx"))


def writable_cache(name: str) -> Path:
    """The folder `name` of the cache, made where it is missing. Raises CacheError."""
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):  # root is told of a read-only file system by nothing less
            pass
    except OSError as error:
        raise CacheError(
            f"{folder} cannot be written ({error.strerror}): name a folder that can be with {PLACE}"
        ) from error
    return folder
