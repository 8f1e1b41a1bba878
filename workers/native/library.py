"""The compiled library of this process."""

from __future__ import annotations

import ctypes
import functools
import logging

from workers.native.build import BuildError, build, switched_off

_log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, built on first use; None where it cannot be had, which is said once, with the remedy.

    Raises:
        ValueError: $PHALANX_NATIVE asks for what this machine cannot do.
    """
    if switched_off():
        return None
    try:
        return ctypes.CDLL(str(build()))
    except (BuildError, OSError) as error:
        # In the message itself: also commands show it that write no log.
        _log.warning("no native kernels, everything runs on torch alone, slower: %s", error)
        return None
