"""What becomes of one request, told in the log and in spans: how it ended, and whenever it moved to another replica."""

from __future__ import annotations

import logging
import uuid
from time import monotonic

from cluster.gateway.request_spans import RequestSpans
from cluster.gateway.requests import MAX_REQUEST_ID, Job
from phalanx.v1 import inference_pb2, registry_pb2

log = logging.getLogger(__name__)

# Names of finish reasons, in logs, spans and metrics.
REASONS = {inference_pb2.FINISH_REASON_STOP: "stop", inference_pb2.FINISH_REASON_LENGTH: "length"}


class RequestRecord:
    """The service says what happens. Holds counts and times, no prompt, token or text. `spans` is None where nothing is
    traced."""

    def __init__(self, request_id: str, tenant: str, arrival: float, spans: RequestSpans | None) -> None:
        self.request_id = request_id[:MAX_REQUEST_ID] or uuid.uuid4().hex
        self._tenant = tenant
        self._arrival = arrival
        self._spans = spans
        self._ids = {"request_id": self.request_id, **({} if spans is None else spans.ids)}
        self._model = ""
        self._outputs = 0
        self._sent: set[int] = set()  # outputs that a replica has had
        self._moves = 0
        self._reasons: list[str] = []
        self._tokens: dict[str, int] = {}
        self._ttft: float | None = None

    def begun(self, job: Job, model: str) -> None:
        """It is checked, and goes to replicas now."""
        self._model, self._outputs = model, len(job.indexes)
        self._tokens = {"prompt_tokens": len(job.prompt), "cached_tokens": 0, "completion_tokens": 0}
        for begun in job.begun:
            self._moved(begun.index, "gateway_lost", len(begun.tokens))

    def sent(self, output: int, replica: registry_pb2.Replica, tokens: int, cause: str) -> str:
        """An output with so many tokens goes to `replica`, not for the first time because of `cause`. Returns what the
        replica's spans have as their parent."""
        if output in self._sent:
            self._moved(output, cause, tokens, replica=replica.id, epoch=replica.epoch)
        self._sent.add(output)
        return "" if self._spans is None else self._spans.sent(output, replica, tokens)

    def took(self, response: inference_pb2.GenerateResponse) -> None:
        """The client gets this."""
        if self._ttft is None and response.token_ids:
            self._ttft = monotonic() - self._arrival
            if self._spans is not None:
                self._spans.answered()
        if response.finish_reason:
            self._reasons.append(REASONS[response.finish_reason])
            self._tokens["completion_tokens"] += response.usage.completion_tokens
            self._tokens["cached_tokens"] = max(self._tokens["cached_tokens"], response.usage.cached_tokens)
            if self._spans is not None:
                self._spans.finished(response.index)

    def ended(self, reason: str | None, expected: bool = True) -> None:
        """Its call has ended; `reason` says why it was refused, None that its client left or has got everything. What
        was not `expected` is a fault of ours."""
        if self._reasons and len(self._reasons) == self._outputs:
            self._end("request finished", finish_reason=",".join(sorted(set(self._reasons))))
        elif reason is None:
            self._end("request cancelled")
        elif self._ttft is None and expected:
            self._end("request refused", reason=reason)
        else:
            self._end("request failed", reason=reason)

    def _moved(self, output: int, cause: str, tokens: int, **where: int) -> None:
        self._moves += 1
        log.info("stream moved", extra={**self._ids, "output": output, "cause": cause, "tokens": tokens, **where})
        if self._spans is not None:
            self._spans.moved(output, cause, tokens)

    def _end(self, event: str, reason: str | None = None, finish_reason: str | None = None) -> None:
        fields: dict[str, str | int | float | None] = {
            "tenant": self._tenant or None,
            "model": self._model or None,
            "reason": reason,
            "finish_reason": finish_reason,
            **self._tokens,
            "ttft_s": None if self._ttft is None else round(self._ttft, 4),
            "duration_s": round(monotonic() - self._arrival, 4),
            "moves": self._moves or None,
        }
        log.log(logging.WARNING if event == "request failed" else logging.INFO, event, extra={**self._ids, **fields})
        if self._spans is not None:
            self._spans.ended(reason, {"request_id": self.request_id, **fields})
