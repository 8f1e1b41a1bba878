"""What one token may use of the cluster at once and in a minute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

_BUSY_RETRY_MS = 1000  # when one of the caller's own sequences ends is theirs to know


@dataclass(frozen=True)
class Quota:
    """None is no limit. Tokens are those of prompts and outputs together."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    max_sequences: Annotated[int, Field(ge=1)] | None = None
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None


class NeverAllowed(ValueError):
    """The request is more than the caller may ever have at once."""


class OverLimit(Exception):
    """The caller has used what it may; after `retry_after_ms` it may again."""

    def __init__(self, detail: str, retry_after_ms: int) -> None:
        super().__init__(f"{detail}: try again after the time in retry-after-ms")
        self.retry_after_ms = retry_after_ms


class _Bucket:
    """Holds up to a minute's worth, and fills evenly. May go below zero, as how long an answer will be is not known."""

    def __init__(self, per_minute: float) -> None:
        self._size = max(1.0, per_minute)
        self._per_second = per_minute / 60
        self._level, self._at = self._size, monotonic()

    def spend(self, amount: float) -> None:
        self._fill()
        self._level -= amount

    def ms_until(self, level: float) -> int:
        """How long until the bucket holds so much; 0 when it does."""
        self._fill()
        return max(0, math.ceil((level - self._level) / self._per_second * 1000))

    def _fill(self) -> None:
        now = monotonic()
        self._level = min(self._size, self._level + (now - self._at) * self._per_second)
        self._at = now


class Allowance:
    """Counts what one token uses at this gateway. Lives on one event loop."""

    def __init__(self, limits: Quota) -> None:
        self._limits = limits
        self._sequences = 0
        self._requests = None if limits.requests_per_minute is None else _Bucket(limits.requests_per_minute)
        self._tokens = None if limits.tokens_per_minute is None else _Bucket(limits.tokens_per_minute)

    @contextmanager
    def request(self, sequences: int, prompt_tokens: int) -> Iterator[Callable[[int], None]]:
        """Holds a request of so many outputs; yields what to call with the number of every output tokens that come.

        Raises:
            OverLimit: not now.
            NeverAllowed: never, as it has more outputs than the token may have at once.
        """
        self._check(sequences)
        if self._requests is not None:
            self._requests.spend(1)
        self._spend(prompt_tokens)
        self._sequences += sequences
        try:
            yield self._spend
        finally:
            self._sequences -= sequences

    def _spend(self, tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.spend(tokens)

    def _check(self, sequences: int) -> None:
        limits = self._limits
        if limits.max_sequences is not None:
            if sequences > limits.max_sequences:
                raise NeverAllowed(f"n is {sequences}, and this token may have {limits.max_sequences} outputs at once")
            if self._sequences + sequences > limits.max_sequences:
                raise OverLimit(
                    f"{self._sequences} sequences are being generated for this token, which may have up to "
                    f"{limits.max_sequences} at once",
                    _BUSY_RETRY_MS,
                )
        if self._requests is not None and (wait := self._requests.ms_until(1)):
            raise OverLimit(f"this token may make {limits.requests_per_minute:g} requests a minute", wait)
        if self._tokens is not None and (wait := self._tokens.ms_until(1)):
            raise OverLimit(f"this token may use {limits.tokens_per_minute:g} tokens a minute", wait)
