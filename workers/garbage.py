"""Python's garbage collector in a process of one rank."""

from __future__ import annotations

import gc


def spare_what_stays() -> None:
    """Leaves alone what there is now, as a rank is loaded: looking through it again and again would cost a step some
    milliseconds."""
    gc.collect()
    gc.freeze()


def spare_nothing() -> None:
    """Frees what is no longer needed of it."""
    gc.unfreeze()
    gc.collect()
