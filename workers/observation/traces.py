"""Traces: spans that go to a collector over OTLP. docs/observability.md has their names and attributes.

OpenTelemetry is imported by a process that traces, and by no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

ENDPOINT = r"^https?://[^/\s]+/?$"
PARENT = "traceparent"  # the header of the W3C's trace context
_DELAY_MS = 1000.0  # what a process that dies had not sent yet is lost
_SEND_S = 3.0  # a collector that is away holds up the end of a process for two tries of this


class TracesUnavailable(RuntimeError):
    """Traces are asked for, and the libraries that send them are not installed."""


class Traces:
    """Sends the spans of this process to `endpoint`, an http:// or https:// address, under the name `service`.

    OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES and OTEL_EXPORTER_OTLP_HEADERS, _CERTIFICATE and so on count as
    OpenTelemetry has them.

    Raises:
        TracesUnavailable: the optional dependencies `traces` are missing.
    """

    def __init__(self, endpoint: str, service: str, instance: str) -> None:
        if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter.otlp.proto.grpc") is None:
            raise TracesUnavailable(
                "traces need OpenTelemetry's exporter: pip install 'phalanx-inference[traces]', or leave --traces out"
            )
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": service, "service.instance.id": instance})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_SEND_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_DELAY_MS))
        self.tracer: Tracer = self._provider.get_tracer("phalanx")

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        self._provider.shutdown()


def parent_of(headers: Mapping[str, str]) -> Context:
    """The span that headers of the W3C's trace context name as the parent of what is done for a request."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(headers)


def traceparent(span: Span) -> str:
    """The header that makes `span` a parent in another process; empty where it is not recorded."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01" if span.is_recording() else ""
