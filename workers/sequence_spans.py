"""The spans of a replica: what its rank 0 saw of a sequence, below the span of the gateway that sent it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.followed import Followed
from workers.traces import PARENT, parent_of

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def write_spans(tracer: Tracer, life: Followed) -> None:
    """Sends `queue`, `prefill` and `decode`, as far as the sequence came."""
    request = life.request
    parent = parent_of({PARENT: request.traceparent})

    def span(name: str, start: int, end: int, attributes: dict[str, str | int]) -> None:
        if start:
            made = tracer.start_span(name, parent, attributes=attributes, start_time=start)
            for at in life.reread:
                if start < at <= (end or life.ended):
                    made.add_event("read anew", timestamp=at)
            made.end(end or life.ended)

    span("queue", life.arrived, life.started, {"phalanx.tokens": len(request.token_ids)})
    prefill = {"phalanx.tokens": len(request.token_ids), "phalanx.cached_tokens": life.cached_tokens}
    span("prefill", life.started, life.answered, {**prefill, "phalanx.chunks": life.chunks})
    finish = "" if life.finish_reason is None else life.finish_reason.value
    decode: dict[str, str | int] = {"phalanx.steps": life.steps, "phalanx.generated_tokens": life.tokens}
    span("decode", life.answered, life.ended, {**decode, "phalanx.finish_reason": finish})
