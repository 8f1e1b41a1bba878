"""How far a draft model has read a sequence."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field


@dataclass(slots=True)
class Reading:
    """While the sequence has `blocks`, a list that is its own until it loses its place.

    The draft model has been told of the first `told` of them, none while it has not met the sequence here. It knows the
    first `known` tokens, and after them `guessed` ones, so far as these become tokens. `noted` blocks are known to be
    full of tokens it has read.
    """

    blocks: list[int]
    told: int = 0
    known: int = 0
    noted: int = 0
    guessed: list[int] = field(default_factory=list)

    def settle(self, tokens: Seq[int]) -> None:
        """The sequence is now `tokens`: right guesses need not be read again."""
        known = self.known
        for guess in self.guessed:
            if known >= len(tokens) - 1 or tokens[known] != guess:
                break
            known += 1
        self.known, self.guessed = known, []
