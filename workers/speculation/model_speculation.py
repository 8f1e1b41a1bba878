"""Which sequences of a step get guesses of a model, and how many."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from time import perf_counter
from typing import Protocol

from workers.request import EngineConfig
from workers.sequence import Sequence
from workers.speculation.acceptance import MOST, Acceptance
from workers.speculation.depth import guesses_worth
from workers.speculation.purse import Purse
from workers.speculation.row_price import RowPrice
from workers.speculation.speculation import Extend
from workers.step import Batch, Drafts

_UNKNOWN = 0.25  # of a step's time: a pass that was never measured
_WEIGHT = 0.2  # of a new measurement
_SURE = 0.95  # the best that guesses may turn out to be
_PATIENCE = 32  # steps without guesses before one more is tried
_LONGEST = 4  # times what is expected: what a disturbed measurement counts for at most


class Drafter(Protocol):
    """See `workers.speculation.draft_model.DraftModel`."""

    def ready(self, sequences: Seq[Sequence]) -> list[Sequence]: ...

    def propose(self, wanted: Seq[tuple[Sequence, int]]) -> Drafts: ...


class ModelSpeculation:
    """With guesses of a model, which makes them for all sequences together, one more of each in a pass.

    A pass has a price, as the rows of the guesses have, and there are as many as raise the tokens a second. What does
    not pay is tried again from time to time, within the means of a `Purse`.
    """

    def __init__(self, config: EngineConfig, model: Drafter) -> None:
        self._config = config
        self._model = model
        self._price = RowPrice()
        self._purse = Purse()
        self._overall = Acceptance()
        self._pass_s: dict[int, float] = {}  # by the bits of the number of sequences
        self._token_s = 0.0  # what one token is worth
        self._idle = 0
        self.drafted = 0
        self.accepted = 0
        self.drafting_s = 0.0

    def drafts(self, batch: Batch, room: int, extend: Extend) -> Drafts:
        measured = self._price.measured(len(batch)) if room > 0 and not self._purse.empty else None
        if measured is None:
            return {}
        step_s, row_s = measured
        counts = self._counts(batch, room, step_s, row_s)
        asked = {sequence: count for (sequence, _), count in zip(batch, counts, strict=True) if count > 0}
        if not asked:
            return {}
        started = perf_counter()
        wanted = [(s, asked[s]) for s in self._model.ready(list(asked)) if extend(s, asked[s])]
        read = perf_counter()
        drafts = self._model.propose(wanted) if wanted else {}
        ended = perf_counter()
        spent = min(read - started, _LONGEST * step_s)
        if wanted:
            self._idle = 0
            passes = max(count for _, count in wanted)
            spent += passes * self._learn_pass(len(batch), (ended - read) / passes, step_s)
        self._token_s = step_s / len(batch)
        self._purse.spend(spent + row_s * sum(count for _, count in wanted))
        self.drafting_s += ended - started
        return drafts

    def judged(self, sequence: Sequence, drafted: int, accepted: int, ended: bool) -> None:
        assert sequence.acceptance is not None
        self.drafted += drafted
        self.accepted += accepted
        self._purse.saved(accepted * self._token_s)
        wrong = accepted < drafted and not ended
        sequence.acceptance.learn(accepted, wrong)
        self._overall.learn(accepted, wrong)

    def finished(self, sequences: int, guesses: int, prompt_tokens: int, seconds: float) -> None:
        self._purse.earn(seconds)
        self._price.learn(sequences, guesses, prompt_tokens, seconds)

    def _counts(self, batch: Batch, room: int, step_s: float, row_s: float) -> list[int]:
        pass_s = self._pass_s.get(len(batch).bit_length(), _UNKNOWN * step_s)
        rates, limits = [], []
        for sequence, _ in batch:
            if sequence.acceptance is None:
                sequence.acceptance = Acceptance(self._overall.rate)
            rates.append(sequence.acceptance.rate)
            # A penalty depends on the tokens before, which ranks know of one position only.
            left = 0 if sequence.uses_penalties else sequence.tokens_left(self._config) - 1
            limits.append(min(MOST, left))
        counts = guesses_worth(rates, limits, room, step_s, row_s, pass_s)
        if any(counts):
            return counts
        self._idle += 1
        if self._idle < _PATIENCE:
            return counts
        sure = guesses_worth([_SURE] * len(batch), limits, room, step_s, row_s, pass_s)
        return [min(1, count) for count in sure]

    def _learn_pass(self, sequences: int, seconds: float, step_s: float) -> float:
        """Returns what such a pass is now taken to cost."""
        bucket = sequences.bit_length()
        known = self._pass_s.get(bucket)
        if known is None:
            known = min(seconds, step_s)
        else:
            known += _WEIGHT * (min(seconds, _LONGEST * known) - known)
        self._pass_s[bucket] = known
        return known
