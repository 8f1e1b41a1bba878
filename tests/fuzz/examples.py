"""How much is tried, and what a reader of hostile files may do with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic

from hypothesis import HealthCheck, settings

# `PHALANX_FUZZ=50 pytest tests/fuzz` tries fifty times as much, and something else in every run.
_TIMES = int(os.environ.get("PHALANX_FUZZ", "0"))
_PATIENCE_S = 10.0  # for one example; anything near it is a loop


def examples(quick: int, **options: int) -> settings:
    """So many examples, the same in every run."""
    return settings(
        max_examples=quick * max(1, _TIMES),
        derandomize=not _TIMES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **options,  # type: ignore[arg-type]
    )


def refused(read: Callable[[], object], *errors: type[Exception], naming: str = "") -> bool:
    """Whether `read` raises one of `errors`, with a message that contains `naming`. It must raise nothing else, soon
    return, and keep its message short."""
    began = monotonic()
    message = None
    try:
        read()
    except errors as error:
        message = str(error)
    assert monotonic() - began < _PATIENCE_S
    if message is None:
        return False
    assert naming in message
    assert len(message) < 10_000
    return True
