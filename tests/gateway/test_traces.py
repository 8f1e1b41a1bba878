"""Spans as a collector gets them: what a client can see of the way of its request."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from phalanx import AsyncClient
from phalanx.v1 import inference_pb2
from tests.collector import Span, collector
from tests.replicas import config_for, plan_for
from tests.served import served

_REQUEST = "phalanx.v1.Inference/Generate"
_PARTS = ["queue", "prefill", "decode"]
_MARKER = "zebra"


def _below(spans: list[Span], parent: Span) -> list[Span]:
    return sorted((span for span in spans if span.parent == parent.id), key=lambda span: span.start)


async def test_a_stream_that_loses_its_gateway_and_its_replica_is_one_trace(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cluster")
    plan = plan_for(model)
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("the program that calls")
    with collector() as collected:
        async with (
            served(plan, config_for(plan), replicas=2, gateways=2, step_s=0.004, traces=collected.endpoint) as cluster,
            AsyncClient(cluster.addresses, timeout=100) as client,
        ):
            unsampled = (("traceparent", f"00-{1:032x}-{1:016x}-00"),)
            request = inference_pb2.GenerateRequest(text=_MARKER, sampling=inference_pb2.Sampling(max_tokens=2))
            async for _ in client._gateways[1].inference.Generate(request, metadata=unsampled):
                pass
            client._rotation._turns = iter([0])  # type: ignore[assignment]
            tokens: list[int] = []
            lost = 0
            with tracer.start_as_current_span("a call") as calling:
                chunks = client.stream(
                    f"the quick {_MARKER}", request_id="x", max_tokens=120, ignore_eos=True, temperature=1.0, seed=3
                )
            async for chunk in chunks:
                tokens += chunk.token_ids
                if lost == 0 and len(tokens) > 20:
                    await cluster.kill(0)
                    lost = 1
                elif lost == 1 and len(tokens) > 50:
                    await cluster.lose(max(cluster.engines, key=lambda number: cluster.engines[number].load().running))
                    lost = 2
            assert len(tokens) == 120
            assert lost == 2
        spans = await asyncio.to_thread(collected.wait, lambda spans: sum(s.name == "decode" for s in spans) == 3)
    caller = calling.get_span_context()
    assert {span.trace for span in spans} == {f"{caller.trace_id:032x}"}
    assert {span.service for span in spans if span.name in _PARTS} == {"phalanx-replica"}

    first, second = sorted((span for span in spans if span.name == _REQUEST), key=lambda span: span.start)
    for span in (first, second):
        assert (span.service, span.parent) == ("phalanx-gateway", f"{caller.span_id:016x}")
        assert span.attributes["phalanx.request_id"] == "x"
        assert span.attributes["gen_ai.request.model"] == plan.model.name
        for stay in _below(spans, span):
            parts = _below(spans, stay)
            assert [part.name for part in parts] == _PARTS
            assert stay.start <= parts[0].start <= parts[0].end == parts[1].start
            assert parts[1].end == parts[2].start <= parts[2].end
    assert [event for event, _ in first.events] == ["first token"]
    assert [stay.failed for stay in _below(spans, second)] == [True, False]
    assert [(name, fields.get("phalanx.cause")) for name, fields in second.events] == [
        ("stream moved", "gateway_lost"),
        ("first token", None),
        ("stream moved", "replica_lost"),
    ]
    assert second.attributes["phalanx.finish_reason"] == "length"
    assert second.attributes["gen_ai.usage.output_tokens"] == 120

    last = _below(spans, second)[-1]
    moved = last.attributes["phalanx.first_token_index"]
    assert 50 < moved < 120
    _, prefill, decode = _below(spans, last)
    assert prefill.attributes["phalanx.tokens"] == second.attributes["gen_ai.usage.input_tokens"] + moved
    assert prefill.attributes["phalanx.chunks"] == 1
    assert decode.attributes["phalanx.generated_tokens"] == 120 - moved
    assert decode.attributes["phalanx.finish_reason"] == "length"
    assert decode.end <= last.end <= second.end

    assert _MARKER not in collected.received
    lines = [record for record in caplog.records if record.getMessage() == "request finished"]
    assert [(getattr(line, "trace_id", ""), getattr(line, "span_id", "")) for line in lines][-1] == (
        second.trace,
        second.id,
    )
