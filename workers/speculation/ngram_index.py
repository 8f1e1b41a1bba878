"""Where a sequence has said the same before."""

from __future__ import annotations

from collections.abc import Sequence as Seq

LENGTH = 3  # tokens that have to be the same before a guess
_AT_ONCE = 2048  # tokens of a new prompt that one step takes in, 0.3 ms


class NgramIndex:
    """The latest place of every LENGTH tokens of a growing sequence; a token costs the same in short and long ones."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # the place of the token that came next
        self._known = LENGTH  # places before this one have been taken in

    def continuation(self, tokens: Seq[int], most: int) -> list[int]:
        """Up to `most` tokens that followed the last LENGTH of `tokens` when these came before; none if they did not.

        `tokens` are those of the call before and perhaps more. What is near the end goes on in circles.
        """
        end = len(tokens)
        stop = min(end, self._known + _AT_ONCE)
        if stop > self._known:
            new = tokens[self._known - LENGTH : stop - 1]
            self._after.update(zip(zip(new, new[1:], new[2:]), range(self._known, stop)))  # noqa: B905
            self._known = stop
        if stop < end or end < LENGTH:
            return []
        place = self._after.get((tokens[-3], tokens[-2], tokens[-1]))
        if place is None:
            return []
        found = list(tokens[place : place + most])
        if len(found) < most:
            found = (found * (most // len(found) + 1))[:most]
        return found
