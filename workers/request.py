"""What goes into the engine and what comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

from workers.objectives import Objectives

SpeculationType = Literal["off", "ngram", "draft", "early-exit"]


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # its deadline could no longer be met when its turn came
    SHED = "shed"  # it waited so long that its first token would have been later than the objective


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch those filters off.

    The draw at position p is a hash of (seed, p, token id), so the same seed gives the same tokens in every batch,
    layout and epoch. `logprobs` is None for none, otherwise how many alternatives to report beside each token.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what would not fit into a step, or poison its numbers."""
        # Written so that NaN fails too.
        if not (
            0 <= self.temperature < math.inf
            and 0 <= self.min_p <= 1
            and 0 < self.top_p <= 1
            and 0 < self.repetition_penalty < math.inf
            and abs(self.presence_penalty) < math.inf
            and abs(self.frequency_penalty) < math.inf
        ):
            raise ValueError(f"sampling parameters out of range: {self}")
        for number in (self.max_tokens, self.top_k, self.logprobs or 0):
            if not 0 <= number < 2**31:
                raise ValueError(f"sampling parameters that do not fit 31 bits: {self}")

    @property
    def filters(self) -> bool:
        """Whether tokens are drawn from some of the vocabulary."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


@dataclass(frozen=True)
class Request:
    """One sequence to generate. `key` is unique among the requests alive in an engine.

    `token_ids` is the prompt followed by what was generated so far elsewhere (a resumed stream): the first
    `prompt_len` are the prompt. The first output token has index `len(token_ids) - prompt_len`, and `max_tokens`
    counts from the end of the prompt.

    Tenants share a replica by their `weight`, the name "" being one like any other. `priority` orders the requests of
    one tenant: a point is worth ten seconds of waiting. `deadline` is when its first token has to be there, in seconds
    of `time.monotonic`. `traceparent` names the span that the request's own are below, where it is traced.
    """

    key: int
    token_ids: Sequence[int]
    prompt_len: int
    sampling: SamplingParams
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    deadline: float | None = None
    traceparent: str = ""

    def most_tokens(self, max_model_len: int) -> int:
        """Of the prompt and what may be generated."""
        return min(self.prompt_len + self.sampling.max_tokens, max_model_len)


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of the token under the model's own distribution (before temperature and penalties),
    and the most likely alternatives as (token id, logprob), best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Output:
    """New tokens of one request. `finish_reason` is set on the last one, which may carry no tokens.

    `cached_tokens` of the `prompt_tokens` were found in the prefix cache.
    """

    key: int
    first_index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class EngineLoad:
    """What a router needs to know of a replica. `accepted_tokens` of the `drafted_tokens`, guesses of speculative
    decoding, were generated. The prefix cache had `cached_prompt_tokens` of the `prompt_tokens` of sequences that were
    given a place; `cached_blocks` are those of the free ones whose content it may still find."""

    running: int = 0
    waiting: int = 0
    parked: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    steps: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    cached_blocks: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0


@dataclass(frozen=True)
class EngineConfig:
    """Limits of one replica's engine.

    `max_waiting` requests of `max_waiting_tokens` tokens (prompts and what may be generated) wait for their first place
    in the running batch; see `workers.bounds`.
    `max_stretch`: how many times as long a prompt may make the steps of sequences that decode; see `workers.pacing`.
    `collective_timeout_s`: how long a step may stand still before the replica counts as hung.
    `objectives`: prompts and running streams share steps so that both keep them, and requests that waited too long for
    that are refused.
    `news_interval_s`: how long tokens may wait to be handed over together, of many streams longer (see `Engine`); a
    request's first and last never do.
    `speculation`: who guesses tokens; see `workers.speculation`. With "draft" it is the model at the path
    `draft_model`, with "early-exit" the first `draft_layers` layers of the model itself.
    """

    max_running: int = 64
    max_waiting: int = 1024
    max_waiting_tokens: int = 1 << 20
    max_batch_tokens: int = 512
    max_stretch: float = 1.8
    objectives: Objectives = field(default_factory=Objectives)
    news_interval_s: float = 0.0
    max_model_len: int = 8192
    prefix_caching: bool = True
    speculation: SpeculationType = "off"
    draft_model: str = ""
    draft_layers: int = 0
    collective_timeout_s: float = 20.0
    eos_token_ids: tuple[int, ...] = field(default=())

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """From its fields, as JSON brings them."""
        objectives, eos_token_ids = Objectives(**fields["objectives"]), tuple(fields["eos_token_ids"])
        return cls(**{**fields, "objectives": objectives, "eos_token_ids": eos_token_ids})
