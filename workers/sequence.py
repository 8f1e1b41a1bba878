"""A request on its way through the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.request import EngineConfig, FinishReason, Request
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
    an entry of it, `parked` while its reader rests.
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
    cancelled: bool = False

    @property
    def uses_penalties(self) -> bool:
        s = self.request.sampling
        return bool(s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0)

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
