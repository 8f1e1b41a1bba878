"""Generation without a server: jobs in, finished outputs out, on a replica of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any

from cluster.gateway.requests import Job
from cluster.text import Detokenizer, Tokenizer
from workers.local import LocalReplica
from workers.request import FinishReason, Output, Request, TokenLogprob
from workers.server import sampling_params


@dataclass
class Usage:
    """Tokens, and seconds since the first job was handed over."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_seconds: float = 0.0
    duration_seconds: float = 0.0


@dataclass
class Result:
    """All outputs of job number `job`."""

    job: int
    outputs: list[dict[str, Any]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def as_json(self) -> dict[str, Any]:
        return {"outputs": self.outputs, "usage": asdict(self.usage)}


class _Growing:
    """An output that is not finished."""

    def __init__(self, job: int, index: int, tokenizer: Tokenizer | None, stop: Sequence[str]) -> None:
        self.job, self.index = job, index
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.text = ""
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, stop)

    def add(self, output: Output) -> tuple[str, FinishReason | None]:
        """The new text, and why the output has ended if it has."""
        first = len(self.token_ids)
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        reason, text = output.finish_reason, ""
        if self._detokenizer is not None:
            # The token that ends an output is not part of its text.
            text = self._detokenizer.push(output.token_ids[: -1 if reason is FinishReason.STOP else None])
            count = self._detokenizer.stop_token_count
            if count is not None and count > first:
                del self.token_ids[count:], self.logprobs[count:]
                reason = FinishReason.STOP
            elif reason is not None:
                text += self._detokenizer.finish()
        self.text += text
        return text, reason

    def as_json(self, reason: FinishReason, reports: bool) -> dict[str, Any]:
        logprobs = [{"logprob": entry.logprob, "top": [list(other) for other in entry.top]} for entry in self.logprobs]
        return {
            "token_ids": self.token_ids,
            "text": None if self._detokenizer is None else self.text,
            "finish_reason": reason.value,
            "logprobs": logprobs if reports else None,
        }


def run_jobs(
    replica: LocalReplica,
    jobs: Sequence[Job],
    tokenizer: Tokenizer | None,
    on_text: Callable[[str], None] = lambda text: None,
) -> Iterator[Result]:
    """Runs all jobs at once and yields each when it is finished; `on_text` gets the text of all as it comes.

    Raises:
        ValueError: a job that can never run on this replica.
        CollectiveStalled, RuntimeError: a rank died.
    """
    started = monotonic()
    growing: dict[int, _Growing] = {}
    requests: list[Request] = []
    for number, job in enumerate(jobs):
        for index, sampling in enumerate(job.samplings):
            key = len(requests)
            growing[key] = _Growing(number, index, tokenizer, job.stop)
            requests.append(Request(key, job.prompt, len(job.prompt), sampling_params(sampling), job.priority))
    results = [Result(number, [{}] * len(job.samplings)) for number, job in enumerate(jobs)]
    for output in replica.generate(requests):
        sequence = growing.get(output.key)
        if sequence is None:
            continue  # a stop string ended it, and this is the last of its tokens
        result, job = results[sequence.job], jobs[sequence.job]
        usage = result.usage
        usage.ttft_seconds = usage.ttft_seconds or monotonic() - started
        text, reason = sequence.add(output)
        on_text(text)
        if reason is None:
            continue
        if output.finish_reason is None:
            replica.engine.cancel(output.key)
        del growing[output.key]
        reports = job.samplings[sequence.index].HasField("logprobs")
        result.outputs[sequence.index] = sequence.as_json(reason, reports)
        usage.prompt_tokens = len(job.prompt)
        usage.cached_tokens = max(usage.cached_tokens, output.cached_tokens)
        usage.completion_tokens += len(sequence.token_ids)
        usage.duration_seconds = monotonic() - started
        if all(result.outputs):
            yield result
