"""A request on its way through the scheduler."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from time import monotonic

from workers.kv_cache import BlockManager
from workers.request import EngineConfig, FinishReason, Output, Request, TokenLogprob
from workers.speculation.acceptance import Acceptance
from workers.speculation.ngram_index import NgramIndex
from workers.speculation.reading import Reading
from workers.tenant import Tenant

Rank = tuple[float, int]

_AGE_S = 10.0  # what a point of priority is worth


def rank_of(priority: int, arrival: float, order: int) -> Rank:
    """The place of a request among its tenant's, served in ascending order: that of one without priority which came
    ten seconds earlier for each point. So nothing waits for ever behind later ones, however important these are.

    `arrival` is in seconds, `order` counts arrivals.
    """
    return arrival - _AGE_S * priority, order


@dataclass(eq=False, slots=True)
class Sequence:
    """`tokens` are the prompt and what was generated so far.

    The KV of the first `planned` tokens is in `blocks`, or will be once the steps in flight have ended; the first
    `remembered` blocks are in the prefix cache, the last of them under the identity `chain`. `slot` is negative while
    it does not run. The first `charged` positions are on its tenant's account.

    It `arrived` at a time of `time.monotonic`. It is `waiting` for a place in the batch, `queued` while the queue has
    an entry of it, `parked` while its reader rests. Once it has `ended`, what steps in flight still draw is dropped.
    `index`, `reading` and `acceptance` are those of its guesses. It `runs_ahead` where what follows a token can be
    computed before that token is known here: penalties count tokens, and filters look how far they reach.
    """

    request: Request
    tenant: Tenant
    rank: Rank
    tokens: list[int]
    arrived: float
    slot: int = -1
    blocks: list[int] = field(default_factory=list)
    planned: int = 0
    remembered: int = 0
    chain: int = 0
    cached: int = 0
    charged: int = 0
    in_flight: int = 0
    waiting: bool = False
    queued: bool = False
    counted: bool = True  # among those that wait for the first time, which are bounded
    parked: bool = False
    ended: bool = False
    index: NgramIndex | None = None
    reading: Reading | None = None
    acceptance: Acceptance | None = None
    runs_ahead: bool = field(init=False)

    def __post_init__(self) -> None:
        self.runs_ahead = not (self.uses_penalties or self.request.sampling.filters)

    @property
    def uses_penalties(self) -> bool:
        s = self.request.sampling
        return bool(s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0)

    def tokens_left(self, config: EngineConfig) -> int:
        """How many it may still get."""
        return self.request.most_tokens(config.max_model_len) - len(self.tokens)

    def too_late(self, reading_s: float, objective_s: float | None) -> FinishReason | None:
        """Why it is to be dropped: its first token cannot come before its deadline, or not within the objective, though
        it could have if its turn had come at once. To read it takes `reading_s`."""
        request = self.request
        if request.deadline is None and objective_s is None:
            return None
        now = monotonic()
        if request.deadline is not None and now + reading_s > request.deadline:
            return FinishReason.EXPIRED
        begun = not self.counted or len(request.token_ids) > request.prompt_len
        if objective_s is not None and not begun and reading_s <= objective_s < now - self.arrived + reading_s:
            return FinishReason.SHED
        return None

    def remember(self, blocks: BlockManager, computed: int) -> None:
        """Puts full blocks of its first `computed` tokens into the prefix cache."""
        size = blocks.block_size
        known = min(computed, len(self.tokens))  # of one that ended in a step in flight, more is computed
        while self.remembered < known // size:
            start = self.remembered * size
            block = self.blocks[self.remembered]
            self.chain = blocks.remember(self.chain, block, self.tokens[start : start + size])
            self.remembered += 1

    def take(
        self, tokens: Seq[int], draft: Seq[int], config: EngineConfig
    ) -> tuple[tuple[int, ...], FinishReason | None]:
        """Appends the first of `tokens`, and each further one for as long as what was guessed before it is right.
        Returns those that were appended, and why the last of them ends it."""
        for number, token in enumerate(tokens, start=1):
            self.tokens.append(token)
            finish = self.finish_reason(config)
            if finish is not None or number > len(draft) or token != draft[number - 1]:
                break
        return tuple(tokens[:number]), finish

    def output(
        self,
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        finish: FinishReason | None = None,
    ) -> Output:
        """Its last tokens as news."""
        return Output(
            key=self.request.key,
            first_index=len(self.tokens) - len(tokens) - self.request.prompt_len,
            token_ids=tokens,
            logprobs=logprobs,
            finish_reason=finish,
            prompt_tokens=self.request.prompt_len,
            cached_tokens=self.cached,
        )

    def order(self) -> tuple[float, Rank]:
        """Sequences are served in ascending order."""
        return self.tenant.counter, self.rank

    def finish_reason(self, config: EngineConfig) -> FinishReason | None:
        """Why the last token ends it, or None when it goes on."""
        sampling, token = self.request.sampling, self.tokens[-1]
        if token in sampling.stop_token_ids:
            return FinishReason.STOP
        if token in config.eos_token_ids and not sampling.ignore_eos:
            return FinishReason.STOP
        length = len(self.tokens)
        if length - self.request.prompt_len >= sampling.max_tokens or length >= config.max_model_len:
            return FinishReason.LENGTH
        return None
