"""Text that grows token by token."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from cluster.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns one output's tokens into text as they come, at a cost that does not grow with the output.

    Text is given out once it is final: a character when all its bytes are there, and text that may be the beginning of
    a stop string when it turns out not to be. All that is given out, together, is `Tokenizer.decode` of all tokens,
    cut before the first stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._longest = max(map(len, stop), default=0)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._strip_space = tokenizer.strips_space
        self._tokens = 0
        self.stop_token_count: int | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string came; `stop_token_count` is the number of tokens up to the one that completed it."""
        return self.stop_token_count is not None

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became final with these tokens. After a stop string there is none."""
        text = ""
        for token in token_ids:
            if self.stopped:
                break
            self._tokens += 1
            text += self._release(self._utf8.decode(self._tokenizer.token_bytes(token)))
        return text

    def finish(self) -> str:
        """The text that was held back, when no more tokens come."""
        text = self._release(self._utf8.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self._strip_space and text:
            text, self._strip_space = text.removeprefix(" "), False
        if not self._stop or self.stopped:
            return "" if self.stopped else text
        held = self._held + text
        places = [place for stop in self._stop if (place := held.find(stop)) >= 0]
        if places:
            self.stop_token_count = self._tokens
            self._held = ""
            return held[: min(places)]
        keep = self._beginning_of_stop(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def _beginning_of_stop(self, text: str) -> int:
        """The length of the longest end of `text` that a stop string begins with."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
