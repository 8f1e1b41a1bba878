"""Whatever comes to a port of a gateway, registry or replica, its server stays what it was, and says what was wrong."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from phalanx.v1 import admin_pb2, inference_pb2, inference_pb2_grpc, registry_pb2, replica_pb2
from tests.fuzz.messages import requests
from tests.replicas import config_for, plan_for
from tests.served import SECRET, Served, served
from workers.security.secret import showing

_ALLOWED = {
    "OK",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "UNAVAILABLE",
    "NOT_FOUND",
}
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SAMPLING = inference_pb2.Sampling(max_tokens=4, seed=1)
_GOOD = inference_pb2.GenerateRequest(
    token_ids=inference_pb2.TokenIds(ids=[5, 6, 7]), sampling=inference_pb2.Sampling(max_tokens=8, ignore_eos=True)
)
_PUBLIC: dict[str, Message] = {
    "phalanx.v1.Inference/Generate": inference_pb2.GenerateRequest(text="the quick", sampling=_SAMPLING),
    "phalanx.v1.Inference/Chat": inference_pb2.ChatRequest(
        messages=[inference_pb2.Message(role="user", content="the lazy dog")], sampling=_SAMPLING
    ),
    "phalanx.v1.Inference/Tokenize": inference_pb2.TokenizeRequest(text="the quick"),
    "phalanx.v1.Inference/Detokenize": inference_pb2.DetokenizeRequest(token_ids=[5, 6, 7]),
    "phalanx.v1.Admin/GetCluster": admin_pb2.GetClusterRequest(),
    "phalanx.v1.Admin/Scale": registry_pb2.ScaleRequest(replicas=2),
    "grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(service="liveness"),
    "grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest(service="liveness"),
    "phalanx.v1.Inference/Nothing": inference_pb2.TokenizeRequest(text="x"),
}


@asynccontextmanager
async def _unmoved(
    model: Path, caplog: pytest.LogCaptureFixture, warm_up: Callable[[Served], Awaitable[None]] | None = None
) -> AsyncIterator[Served]:
    """A cluster which, after what is done to it, has to be as before. What memory a first time takes for good,
    `warm_up` takes beforehand."""
    plan = plan_for(model)
    async with served(plan, config_for(plan), send_timeout_s=5.0) as cluster:
        engine, admission = cluster.engines[0], cluster.gateway._admission
        if warm_up is not None:
            await warm_up(cluster)
            await _until(lambda: not admission.requests and not engine._scheduler._by_key)
        tokens, tasks = await _tokens(cluster), len(asyncio.all_tasks())
        memory = psutil.Process().memory_info().rss
        with caplog.at_level(logging.WARNING):
            yield cluster
            await _until(lambda: not admission.requests and not engine._scheduler._by_key)
            assert admission.bounds.held_tokens == 0
            assert engine.load().free_blocks == engine.load().total_blocks
            assert await _tokens(cluster) == tokens
            await _until(lambda: len(asyncio.all_tasks()) <= tasks + 2)
            gc.collect()
            assert psutil.Process().memory_info().rss - memory < 64 << 20
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def _tokens(cluster: Served) -> list[int]:
    async with grpc.aio.insecure_channel(cluster.address) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(_GOOD, timeout=30)
        return [token async for news in call for token in news.token_ids]


async def _until(holds: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


async def _answer(channel: grpc.aio.Channel, method: str, data: bytes, secret: str = "") -> tuple[str, str]:
    """Status and sentence; what goes on for ever is cancelled after its first message."""
    call = channel.unary_stream(f"/{method}")(data, timeout=2.0, metadata=showing(secret) if secret else None)
    try:
        while await call.read() is not grpc.aio.EOF:
            if method.endswith("Watch"):
                call.cancel()
                return "OK", ""
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


def _proper(answer: tuple[str, str]) -> bool:
    """A status with a sentence; the health service says NOT_FOUND without one, as its protocol has it."""
    code, detail = answer
    return code in _ALLOWED and (
        code in ("OK", "NOT_FOUND") or (len(detail) > 10 and not re.search(r"<class|Traceback", detail))
    )


@pytest.mark.parametrize("method", _PUBLIC)
async def test_wrong_messages_to_the_public_port(model: Path, caplog: pytest.LogCaptureFixture, method: str) -> None:
    sent = await asyncio.to_thread(requests, _PUBLIC[method], 60)
    async with _unmoved(model, caplog) as cluster, grpc.aio.insecure_channel(cluster.address) as channel:
        answers = await asyncio.gather(*(_answer(channel, method, data) for data in sent))
        assert [answer for answer in answers if not _proper(answer)] == []


async def test_wrong_messages_to_the_registry(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = await asyncio.to_thread(requests, registry_pb2.WatchRequest(gateway_id="x"), 40)
    scale = await asyncio.to_thread(requests, registry_pb2.ScaleRequest(replicas=2), 40)
    async with _unmoved(model, caplog) as cluster, grpc.aio.insecure_channel(cluster.registry_address) as channel:
        for name, sent in (("Watch", watch), ("Scale", scale)):
            method = f"phalanx.v1.Registry/{name}"
            answers = await asyncio.gather(*(_answer(channel, method, data, SECRET) for data in sent))
            assert [answer for answer in answers if not _proper(answer)] == []
            strangers = await asyncio.gather(*(_answer(channel, method, data) for data in sent))
            assert {code for code, _ in strangers} == {"UNAUTHENTICATED"}


async def test_wrong_messages_to_a_replica(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    submit = replica_pb2.Submit(key=1, token_ids=[5, 6], prompt_len=2, sampling=_SAMPLING)
    sent = await asyncio.to_thread(requests, replica_pb2.AttachRequest(submit=submit), 60)
    async with (
        _unmoved(model, caplog) as cluster,
        grpc.aio.insecure_channel(cluster.replicas[0].address) as channel,
    ):
        for start in range(0, len(sent), 3):
            call = channel.stream_stream("/phalanx.v1.ReplicaLink/Attach")(metadata=showing(cluster.link_secrets[0]))
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                for data in sent[start : start + 3]:
                    await call.write(data)
                await call.read()
                await asyncio.sleep(0.01)
            call.cancel()


async def test_bytes_that_are_no_http2(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with _unmoved(model, caplog) as cluster:
        for address in (cluster.address, cluster.registry_address, cluster.replicas[0].address):
            for data in _connections():
                host, _, port = address.partition(":")
                _, writer = await asyncio.open_connection(host, int(port))
                with suppress(ConnectionError):
                    writer.write(data)
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _connections() -> Iterator[bytes]:
    rng = random.Random(7)
    opened = _PREFACE + _frame(4, 0, 0, b"")
    yield b""
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield _PREFACE[:11]
    yield rng.randbytes(4096)
    yield opened + rng.randbytes(4096)
    yield opened + _frame(1, 4, 1, b"\x82")[:7]  # a frame that breaks off
    yield opened + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"  # one that says it has 16 MB
    yield opened + _frame(1, 0, 1, b"\x82") + 2000 * _frame(9, 0, 1, b"\x40\x01x\x40yyyyyyyy")  # headers without end
    yield opened + b"".join(_frame(1, 4, n, b"\x83\x86") + _frame(3, 0, n, bytes(4)) for n in range(1, 4001, 2))
    yield opened + 5000 * _frame(6, 0, 0, bytes(8))  # pings
    yield opened + 3000 * _frame(4, 0, 0, b"\x00\x04\x00\x00\x00\x01")  # settings
    yield opened + _frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2  # a window that overflows
    for _ in range(30):
        frames = (
            _frame(
                rng.randrange(12),
                rng.randrange(256),
                rng.choice([0, 1, 3, 2**31 - 1]),
                rng.randbytes(rng.randrange(40)),
            )
            for _ in range(8)
        )
        yield opened + b"".join(frames)


async def test_huge_metadata_is_refused(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with _unmoved(model, caplog) as cluster, grpc.aio.insecure_channel(cluster.address) as channel:
        generate = inference_pb2_grpc.InferenceStub(channel).Generate
        for metadata in ([("x", "y" * 100_000)], [(f"x{n}", "y" * 100) for n in range(1000)]):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await generate(_GOOD, metadata=metadata, timeout=5).read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_thousand_streams_cancelled_at_once(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    request = inference_pb2.GenerateRequest()
    request.CopyFrom(_GOOD)
    request.sampling.max_tokens = 400

    async def cancelled(cluster: Served) -> None:
        async with grpc.aio.insecure_channel(cluster.address) as channel:
            generate = inference_pb2_grpc.InferenceStub(channel).Generate
            for wait_s in (0.0, 0.3):
                calls = [generate(request) for _ in range(1000)]
                await asyncio.sleep(wait_s)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*(call.code() for call in calls))

    async with _unmoved(model, caplog, warm_up=cancelled) as cluster:
        await cancelled(cluster)
