"""The spans of a replica: what its rank 0 saw of a sequence, below the span of the gateway that sent it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.observation.followed import Followed
from workers.observation.traces import PARENT, parent_of

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def write_spans(tracer: Tracer, life: Followed) -> None:
    """Sends `queue`, `prefill` and `decode`, as far as the sequence came; the last says why it ended."""
    request = life.request
    parent = parent_of({PARENT: request.traceparent})

    def span(name: str, start: int, end: int, attributes: dict[str, str | int]) -> None:
        if not start:
            return
        last = end or life.ended
        if last == life.ended and life.finish_reason is not None:
            attributes["phalanx.finish_reason"] = life.finish_reason.value
        made = tracer.start_span(name, parent, attributes=attributes, start_time=start)
        for at in life.reread:
            if start < at <= last:
                made.add_event("read anew", timestamp=at)
        made.end(last)

    tokens = {"phalanx.tokens": len(request.token_ids)}
    span("queue", life.arrived, life.started, {**tokens})
    read = {"phalanx.cached_tokens": life.cached_tokens, "phalanx.chunks": life.chunks}
    span("prefill", life.started, life.answered, {**tokens, **read})
    span("decode", life.answered, life.ended, {"phalanx.generated_tokens": life.tokens, "phalanx.steps": life.steps})
