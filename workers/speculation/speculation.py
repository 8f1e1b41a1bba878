"""Which sequences of a step get guesses, and how many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from workers.request import EngineConfig
from workers.sequence import Sequence
from workers.speculation.acceptance import Acceptance
from workers.speculation.row_price import RowPrice
from workers.step import Batch, Drafts

# Who guesses: up to so many tokens that may follow the last of the sequence.
Propose = Callable[[Sequence, int], list[int]]
# Makes room in the KV cache for so many guesses of a sequence, in blocks that nobody needs now; False without such.
Extend = Callable[[Sequence, int], bool]

_TOO_DEAR = 0.9  # tokens: next to no guess is worth that


class Speculation(Protocol):
    """Of a whole replica. `drafted` counts the guesses so far, `accepted` those that became tokens, and `drafting_s`
    adds up the seconds that models took to make them."""

    drafted: int
    accepted: int
    drafting_s: float

    def drafts(self, batch: Batch, room: int, extend: Extend) -> Drafts:
        """Guesses for sequences of `batch`, which all decode: `room` at most, of all together."""
        ...

    def judged(self, sequence: Sequence, drafted: int, accepted: int, ended: bool) -> None:
        """So many of a sequence's guesses became tokens, when it `ended` or the next one was another than guessed."""
        ...

    def finished(self, sequences: int, guesses: int, prompt_tokens: int, seconds: float) -> None:
        """The oldest step in flight took so long by itself, in which so many sequences got tokens."""
        ...


class LookupSpeculation:
    """With guesses that cost next to nothing to make, for one sequence after the other.

    Guesses fill what a step has left: where sequences wait or prompts are read there are none, and the more sequences
    decode the dearer they are, until none is worth its price.
    """

    def __init__(self, config: EngineConfig, propose: Propose) -> None:
        self._config = config
        self._propose = propose
        self._price = RowPrice()
        self.drafted = 0
        self.accepted = 0
        self.drafting_s = 0.0

    def drafts(self, batch: Batch, room: int, extend: Extend) -> Drafts:
        price = self._price.of(len(batch)) if room > 0 else None
        drafts: Drafts = {}
        if price is None or price > _TOO_DEAR:
            return drafts
        for sequence, _ in batch:
            # A penalty depends on the tokens before, which ranks know of one position only.
            if sequence.uses_penalties:
                continue
            if sequence.acceptance is None:
                sequence.acceptance = Acceptance()
            most = min(sequence.acceptance.worth(price), room, sequence.tokens_left(self._config) - 1)
            if most > 0 and (draft := self._propose(sequence, most)) and extend(sequence, len(draft)):
                drafts[sequence.slot] = draft
                room -= len(draft)
        return drafts

    def judged(self, sequence: Sequence, drafted: int, accepted: int, ended: bool) -> None:
        assert sequence.acceptance is not None
        self.drafted += drafted
        self.accepted += accepted
        sequence.acceptance.learn(accepted, wrong=accepted < drafted and not ended)

    def finished(self, sequences: int, guesses: int, prompt_tokens: int, seconds: float) -> None:
        self._price.learn(sequences, guesses, prompt_tokens, seconds)
