"""Calls between the native library and a group of ranks, which it meets itself or, between hosts, by calling back."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from workers.collectives import Group, SharedMemoryGroup

_FAILED = 1
Arguments = ParamSpec("Arguments")


class GroupCalls:
    """Carries what goes wrong in a call back past the library, whose functions return a status."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._failure: BaseException | None = None

    def back(self, work: Callable[Arguments, None]) -> Callable[Arguments, int]:
        """`work` as the library calls it."""

        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
            try:
                work(*args, **kwargs)
            except BaseException as error:
                self._failure = error
                return _FAILED
            return 0

        return call

    def check(self, status: int) -> None:
        """Raises what went wrong in a call back, and CollectiveStalled where the library missed another rank."""
        if self._failure is not None:
            raise self._failure
        if status != 0:
            assert isinstance(self._group, SharedMemoryGroup)
            raise self._group.stalled()
