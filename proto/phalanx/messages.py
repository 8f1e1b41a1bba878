"""Between the typed Python API and the messages of `phalanx.v1`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from phalanx.v1 import inference_pb2

Prompt = str | Sequence[int]
Messages = Iterable[Mapping[str, str]]

_REASONS = {inference_pb2.FINISH_REASON_STOP: "stop", inference_pb2.FINISH_REASON_LENGTH: "length"}


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen; see `phalanx.v1.Sampling` for ranges. What is left out changes nothing: the default is
    greedy decoding of up to 128 tokens."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logprobs: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural-log probability, and the likeliest tokens as (token id, logprob), best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """News of output `index`. `finish_reason` ("stop" or "length") and `usage` come with the last one."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    first_token_index: int
    finish_reason: str | None
    usage: inference_pb2.Usage | None


@dataclass
class Completion:
    """One whole output."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    usage: inference_pb2.Usage | None = None

    def add(self, chunk: Chunk) -> None:
        self.text += chunk.text
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        self.finish_reason = chunk.finish_reason
        self.usage = chunk.usage


def generate_request(
    prompt: Prompt, n: int, priority: int, request_id: str, options: SamplingOptions
) -> inference_pb2.GenerateRequest:
    request = inference_pb2.GenerateRequest(
        request_id=request_id, sampling=inference_pb2.Sampling(**options), n=n, priority=priority
    )
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
        request.token_ids.SetInParent()
    return request


def chat_request(
    messages: Messages, n: int, priority: int, request_id: str, options: SamplingOptions
) -> inference_pb2.ChatRequest:
    return inference_pb2.ChatRequest(
        request_id=request_id,
        messages=[inference_pb2.Message(role=m["role"], content=m["content"]) for m in messages],
        sampling=inference_pb2.Sampling(**options),
        n=n,
        priority=priority,
    )


def chunk(response: inference_pb2.GenerateResponse) -> Chunk:
    reason = _REASONS.get(response.finish_reason)
    return Chunk(
        index=response.index,
        text=response.text,
        token_ids=tuple(response.token_ids),
        logprobs=tuple(
            TokenLogprob(entry.logprob, tuple((other.token_id, other.logprob) for other in entry.top))
            for entry in response.logprobs
        ),
        first_token_index=response.first_token_index,
        finish_reason=reason,
        usage=response.usage if reason else None,
    )
