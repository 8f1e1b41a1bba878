"""The spans of a request at its gateway: the call, and below it each of its outputs' stays at a replica."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from phalanx.v1 import inference_pb2, registry_pb2
from workers.observation.traces import PARENT, parent_of, traceparent

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from cluster.gateway.errors import Context

_HEADERS = (PARENT, "tracestate")
_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name

# What OpenTelemetry's conventions for generative models and for gRPC have names for; others begin with phalanx.
_CONVENTIONS = {
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
}


class RequestSpans:
    """Below the span that the client names, if it does. Where the request is not sampled, nothing is recorded."""

    def __init__(self, tracer: Tracer, method: str, context: Context) -> None:
        from opentelemetry.trace import SpanKind

        metadata = context.invocation_metadata() or ()
        headers = {name: value for name, value in metadata if name in _HEADERS and isinstance(value, str)}
        attributes = {"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": method}
        self._tracer = tracer
        self._span = tracer.start_span(
            f"{_SERVICE}/{method}", parent_of(headers), kind=SpanKind.SERVER, attributes=attributes
        )
        self._stays: dict[int, Span] = {}  # by output

    @property
    def ids(self) -> dict[str, str]:
        """What lines in the log name the span by."""
        context = self._span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def sent(self, output: int, replica: registry_pb2.Replica, tokens: int) -> str:
        """An output goes to a replica; returns what the replica's spans have as their parent."""
        if not self._span.is_recording():
            return ""
        from opentelemetry.trace import SpanKind, set_span_in_context

        where = {"phalanx.replica": replica.id, "phalanx.epoch": replica.epoch}
        stay = self._tracer.start_span(
            "sequence",
            set_span_in_context(self._span),
            kind=SpanKind.CLIENT,
            attributes={"phalanx.output": output, "phalanx.first_token_index": tokens, **where},
        )
        self._stays[output] = stay
        return traceparent(stay)

    def moved(self, output: int, cause: str, tokens: int) -> None:
        """It goes elsewhere now, because of `cause`."""
        self._leave(output, cause)
        self._span.add_event(
            "stream moved", {"phalanx.output": output, "phalanx.cause": cause, "phalanx.tokens": tokens}
        )

    def answered(self) -> None:
        self._span.add_event("first token")

    def finished(self, output: int) -> None:
        self._leave(output)

    def ended(self, reason: str | None, fields: Mapping[str, str | int | float | None]) -> None:
        """The call has ended, with `fields` as in the log; `reason` says what went wrong."""
        from opentelemetry.trace import StatusCode

        for output in list(self._stays):
            self._leave(output)
        for name, value in fields.items():
            if value is not None:
                self._span.set_attribute(_CONVENTIONS.get(name, f"phalanx.{name}"), value)
        if reason is not None:
            self._span.set_status(StatusCode.ERROR, reason)
        self._span.end()

    def _leave(self, output: int, error: str = "") -> None:
        from opentelemetry.trace import StatusCode

        if (stay := self._stays.pop(output, None)) is not None:
            if error:
                stay.set_status(StatusCode.ERROR, error)
            stay.end()
