"""Requests, checked once at the edge: what comes out of here is complete and can run."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.gateway.caller import ANYBODY, Caller
from cluster.text import Detokenizer
from phalanx.v1 import inference_pb2
from workers.seeds import derived_seed

MAX_OUTPUTS = 16
MAX_MESSAGES = 10_000
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_IDS = 64
MAX_LOGPROBS = 20
MAX_PRIORITY = 100
MAX_REQUEST_ID = 128
DEFAULT_MAX_TOKENS = 128


class InvalidRequest(ValueError):
    """A field has a value that can never work; the message names it, its value and what would."""


@dataclass(frozen=True)
class Limits:
    """What the cluster can serve: token ids below `vocab_size`, sequences up to `max_model_len` tokens."""

    vocab_size: int
    max_model_len: int


@dataclass(frozen=True)
class Begun:
    """An output as far as the client has it: its tokens, the detokenizer behind them, and the text that they complete
    but the client lacks. `finish_reason` is set when its last token ends it."""

    index: int
    tokens: tuple[int, ...]
    detokenizer: Detokenizer | None
    unsent: str
    finish_reason: inference_pb2.FinishReason
    cached_tokens: int
    ttft: float


@dataclass(frozen=True)
class Job:
    """A checked request. `samplings[i]`, of output i, has no field left out; stop strings are in `stop` alone.

    `chat_time` is what the chat template was told, if it was used. Of a request that is resumed, the outputs `begun`
    go on, those `finished` are left out, and the others begin anew. `caller` made it; `deadline` is the end of the
    call, in seconds of `time.monotonic`.
    """

    prompt: tuple[int, ...]
    samplings: tuple[inference_pb2.Sampling, ...]
    stop: tuple[str, ...]
    priority: int
    chat_time: str = ""
    begun: tuple[Begun, ...] = ()
    finished: frozenset[int] = frozenset()
    caller: Caller = ANYBODY
    deadline: float | None = None

    def tokens(self, limits: Limits) -> int:
        """The most that its outputs may have in the KV cache."""
        return sum(
            min(len(self.prompt) + self.samplings[index].max_tokens, limits.max_model_len) for index in self.indexes
        )

    @property
    def indexes(self) -> list[int]:
        """The outputs that are to be generated."""
        return [index for index in range(len(self.samplings)) if index not in self.finished]


def check_job(prompt: Sequence[int], sampling: inference_pb2.Sampling, n: int, priority: int, limits: Limits) -> Job:
    """The job that a request asks for.

    Raises:
        InvalidRequest: naming the first field that is wrong.
    """
    check_length(len(prompt), limits)
    check_ids(prompt, limits)
    if n > MAX_OUTPUTS:
        raise InvalidRequest(f"n is {n}, and may be up to {MAX_OUTPUTS}: send several requests")
    if abs(priority) > MAX_PRIORITY:
        raise InvalidRequest(f"priority is {priority}, and may be from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    complete = _complete(sampling, limits)
    seed = sampling.seed if sampling.HasField("seed") else secrets.randbits(63)
    return Job(
        prompt=tuple(prompt),
        samplings=tuple(_seeded(complete, seed, index) for index in range(max(n, 1))),
        stop=tuple(sampling.stop),
        priority=priority,
    )


def check_request_id(request_id: str) -> None:
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidRequest(f"request_id has {len(request_id)} characters, and may have up to {MAX_REQUEST_ID}")


def check_length(tokens: int, limits: Limits) -> None:
    if not tokens:
        raise InvalidRequest("the prompt is empty: it needs at least one token")
    if tokens >= limits.max_model_len:
        raise InvalidRequest(
            f"the prompt has {tokens} tokens, and this cluster serves sequences of up to {limits.max_model_len}: "
            "shorten it, or serve with a larger max_model_len"
        )


def check_size(characters: int, limits: Limits, longest_token: int, what: str = "the prompt") -> None:
    """Refuses text that cannot fit before it is made tokens of, which takes seconds for tens of megabytes."""
    most = limits.max_model_len * longest_token
    if characters > most:
        raise InvalidRequest(
            f"{what} has {characters} characters, and no more than {most} can fit the sequences of up to "
            f"{limits.max_model_len} tokens that this cluster serves: shorten it, or serve with a larger max_model_len"
        )


def check_messages(messages: Sequence[inference_pb2.Message]) -> list[dict[str, str]]:
    """A conversation in the form that chat templates take."""
    if not messages:
        raise InvalidRequest("messages is empty: a chat needs at least one message")
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages has {len(messages)} entries, and may have up to {MAX_MESSAGES}")
    for place, message in enumerate(messages):
        if not message.role:
            raise InvalidRequest(f'messages[{place}].role is empty: it is usually "system", "user" or "assistant"')
    return [{"role": message.role, "content": message.content} for message in messages]


def check_count(tokens: int, limits: Limits, field: str) -> None:
    """Before anything is done with each of them."""
    if tokens > limits.max_model_len:
        raise InvalidRequest(
            f"{field} has {tokens} ids, and this cluster serves sequences of up to {limits.max_model_len}: send fewer"
        )


def check_ids(ids: Sequence[int], limits: Limits, field: str = "token_ids") -> None:
    if ids and max(ids) >= limits.vocab_size:
        place, token = next((i, t) for i, t in enumerate(ids) if t >= limits.vocab_size)
        raise InvalidRequest(f"{field}[{place}] is {token}, and the model's token ids are below {limits.vocab_size}")


def _complete(sampling: inference_pb2.Sampling, limits: Limits) -> inference_pb2.Sampling:
    """A copy with every default filled in, without stop strings."""
    complete = inference_pb2.Sampling()
    complete.CopyFrom(sampling)
    complete.DiscardUnknownFields()  # every output gets a copy, and the replicas too
    complete.ClearField("stop")
    complete.max_tokens = sampling.max_tokens or DEFAULT_MAX_TOKENS
    if not sampling.HasField("top_p"):
        complete.top_p = 1.0
    if not sampling.HasField("repetition_penalty"):
        complete.repetition_penalty = 1.0
    complete.top_k = min(sampling.top_k, limits.vocab_size)
    complete.max_tokens = min(complete.max_tokens, limits.max_model_len)
    # Written so that NaN fails too.
    _require(0 <= complete.temperature <= 10, "sampling.temperature", complete.temperature, "from 0 to 10")
    _require(0 < complete.top_p <= 1, "sampling.top_p", complete.top_p, "above 0, up to 1")
    _require(0 <= complete.min_p < 1, "sampling.min_p", complete.min_p, "from 0 to below 1")
    _require(-2 <= complete.presence_penalty <= 2, "sampling.presence_penalty", complete.presence_penalty, "-2 to 2")
    _require(-2 <= complete.frequency_penalty <= 2, "sampling.frequency_penalty", complete.frequency_penalty, "-2 to 2")
    _require(
        0 < complete.repetition_penalty <= 10,
        "sampling.repetition_penalty",
        complete.repetition_penalty,
        "above 0, up to 10",
    )
    if complete.logprobs > MAX_LOGPROBS:
        raise InvalidRequest(f"sampling.logprobs is {complete.logprobs}, and may be up to {MAX_LOGPROBS}")
    complete.logprobs = min(complete.logprobs, limits.vocab_size)
    if not sampling.HasField("logprobs"):
        complete.ClearField("logprobs")
    if len(sampling.stop) > MAX_STOPS:
        raise InvalidRequest(f"sampling.stop has {len(sampling.stop)} strings, and may have up to {MAX_STOPS}")
    for place, text in enumerate(sampling.stop):
        size = len(text.encode())
        if not 0 < size <= MAX_STOP_BYTES:
            raise InvalidRequest(f"sampling.stop[{place}] has {size} bytes, and may have 1 to {MAX_STOP_BYTES}")
    if len(sampling.stop_token_ids) > MAX_STOP_IDS:
        raise InvalidRequest(
            f"sampling.stop_token_ids has {len(sampling.stop_token_ids)} ids, and may have up to {MAX_STOP_IDS}"
        )
    check_ids(sampling.stop_token_ids, limits, "sampling.stop_token_ids")
    return complete


def _seeded(sampling: inference_pb2.Sampling, seed: int, index: int) -> inference_pb2.Sampling:
    seeded = inference_pb2.Sampling()
    seeded.CopyFrom(sampling)
    seeded.seed = derived_seed(seed, index)
    return seeded


def _require(holds: bool, field: str, value: float, allowed: str) -> None:
    if not holds:
        raise InvalidRequest(f"{field} is {value:g}, and may be {allowed}")
