"""Clients whose gateway dies, in front of real replicas: their streams go on elsewhere as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.gateway.server import Gateway, GatewayConfig
from phalanx import AsyncClient, Chunk, Client, Completion, DeadlineExceeded, Unavailable
from phalanx.resumption import Request, Stream
from phalanx.v1 import inference_pb2
from tests.replicas import config_for, plan_for
from tests.served import SECRET, Served, served

_PROMPT = "the quick brown fox"
_MESSAGES = [{"role": "user", "content": "hello"}]
_SAMPLED = {"temperature": 1.0, "seed": 7, "ignore_eos": True}
_STEP_S = 0.004  # a stream of 250 tokens takes a second


@dataclass(frozen=True)
class Kind:
    """A kind of request: `options` are those of the client's methods."""

    options: dict[str, Any]
    chat: bool = False

    def stream(self, client: AsyncClient, **options: Any) -> AsyncIterator[Chunk]:
        asked = {"max_tokens": 250, **self.options, **options}
        return client.chat_stream(_MESSAGES, **asked) if self.chat else client.stream(_PROMPT, **asked)


_KINDS = {
    "greedy": Kind({"ignore_eos": True}),
    "seeded": Kind(_SAMPLED),
    "unseeded": Kind({"temperature": 1.0, "ignore_eos": True}),
    "four outputs": Kind({**_SAMPLED, "n": 4}),
    "chat": Kind(_SAMPLED, chat=True),
    "logprobs and penalties": Kind(
        {**_SAMPLED, "logprobs": 2, "presence_penalty": 0.5, "frequency_penalty": 0.1, "repetition_penalty": 1.1}
    ),
    "ends by itself": Kind({"temperature": 1.0, "seed": 3, "max_tokens": 400}),
}


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Request]:
    """The last request of each stream that went to another gateway, by request id."""
    seen: dict[str, Request] = {}
    original = Stream.request

    def request(self: Stream) -> Request:
        asked = original(self)
        if asked.HasField("resume"):
            seen[asked.request_id] = type(asked).FromString(asked.SerializeToString())
        return asked

    monkeypatch.setattr(Stream, "request", request)
    return seen


@pytest.fixture
async def cluster(model: Path) -> AsyncIterator[Served]:
    plan = plan_for(model)
    async with served(plan, config_for(plan), gateways=2, step_s=_STEP_S) as running:
        yield running


async def _whole(chunks: AsyncIterator[Chunk], begun: asyncio.Event | None = None) -> list[Completion]:
    """All outputs; every chunk has to follow the one before it."""
    outputs: dict[int, Completion] = {}
    async for chunk in chunks:
        output = outputs.setdefault(chunk.index, Completion())
        assert chunk.first_token_index == len(output.token_ids)
        output.add(chunk)
        if begun is not None and len(output.token_ids) > 20:
            begun.set()
    return [outputs[index] for index in sorted(outputs)]


async def _undisturbed(cluster: Served, kind: Kind, **options: Any) -> list[Completion]:
    async with AsyncClient(cluster.addresses[-1], timeout=200) as client:
        return await _whole(kind.stream(client, **options))


def _assert_same(found: Sequence[Completion], expected: Sequence[Completion]) -> None:
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert len(one.logprobs) == len(other.logprobs)
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]
        assert one.usage is not None
        assert other.usage is not None
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        assert one.usage.completion_tokens == other.usage.completion_tokens == len(one.token_ids)


def _assert_times_are_of_the_whole(output: Completion, request: Request) -> None:
    token = inference_pb2.ResumeToken.FromString(request.resume.outputs[0].resume_token)
    assert output.usage is not None
    assert output.usage.ttft_seconds == token.ttft_seconds
    assert output.usage.cached_tokens == token.cached_tokens
    assert output.usage.duration_seconds > request.resume.elapsed_seconds > token.ttft_seconds > 0


@asynccontextmanager
async def _gateway_process(cluster: Served) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A real `phalanx gateway` and its address."""
    command = ["-m", "cluster.cli", "gateway", "--registry", cluster.registry_address, "--listen", "127.0.0.1:0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PHALANX_REGISTRY_SECRET": SECRET},
    )
    try:
        async with asyncio.timeout(60):
            assert process.stderr is not None
            said = (await process.stderr.readline()).decode()
            address = said.removeprefix("listening at ").partition(",")[0]
            async with AsyncClient(address) as client:
                while True:
                    try:
                        await client.generate("x", max_tokens=1)
                        break
                    except Unavailable:
                        await asyncio.sleep(0.05)
        yield process, address
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_every_kind_of_stream_survives_a_gateway_that_is_killed(
    cluster: Served, resumed: dict[str, Request]
) -> None:
    """By SIGKILL, while the streams of all kinds and of both clients run on it."""
    outputs = await asyncio.gather(*(_undisturbed(cluster, kind) for kind in _KINDS.values()))
    expected, kinds = dict(zip(_KINDS, outputs, strict=True)), dict(_KINDS)
    kinds["stop string"] = Kind({**_SAMPLED, "stop": [_late(expected["seeded"][0].text)]})
    expected["stop string"] = await _undisturbed(cluster, kinds["stop string"])
    assert expected["stop string"][0].finish_reason == expected["ends by itself"][0].finish_reason == "stop"
    assert len(expected["ends by itself"][0].token_ids) > 50
    async with _gateway_process(cluster) as (process, doomed):
        begun = {name: asyncio.Event() for name in kinds}

        async def survive(name: str, kind: Kind) -> list[Completion]:
            async with AsyncClient([doomed, cluster.address], timeout=200) as client:
                client._rotation._turns = iter([0])  # type: ignore[assignment]
                return await _whole(kind.stream(client, request_id=name), begun[name])

        def blocking() -> Completion:
            with Client(f"{doomed},{cluster.address}", timeout=200) as client:
                client._rotation._turns = iter([0])  # type: ignore[assignment]
                return client.generate(_PROMPT, request_id="blocking", max_tokens=250, **_KINDS["seeded"].options)

        running = {name: asyncio.create_task(survive(name, kind)) for name, kind in kinds.items()}
        other = asyncio.create_task(asyncio.to_thread(blocking))
        async with asyncio.timeout(60):
            for event in begun.values():
                await event.wait()
        process.send_signal(signal.SIGKILL)
        found = {name: await task for name, task in running.items()}
        found["blocking"], expected["blocking"] = [await other], expected["seeded"]
    assert resumed.keys() == found.keys()
    seed = inference_pb2.ResumeToken.FromString(resumed["unseeded"].resume.outputs[0].resume_token).seed
    expected["unseeded"] = await _undisturbed(cluster, kinds["unseeded"], seed=seed)
    for name, outputs in found.items():
        _assert_same(outputs, expected[name])
    _assert_times_are_of_the_whole(found["greedy"][0], resumed["greedy"])


def _late(text: str) -> str:
    """Three characters that come in the last third of a text alone."""
    return next(
        text[i : i + 3]
        for i in range(len(text) * 2 // 3, len(text) - 3)
        if "\ufffd" not in text[i : i + 3] and text.find(text[i : i + 3]) == i
    )


async def test_a_gateway_that_shuts_down_sends_its_streams_elsewhere(
    cluster: Served, resumed: dict[str, Request]
) -> None:
    kind = _KINDS["four outputs"]
    expected = await _undisturbed(cluster, kind)
    async with AsyncClient(cluster.addresses, timeout=200) as client:
        streams = [asyncio.create_task(_whole(kind.stream(client, request_id=str(number)))) for number in range(4)]
        async with asyncio.timeout(10):
            while not all(gateway._admission.requests == 2 for gateway in cluster.gateways):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert await cluster.gateways[0].drain(0.1) == 2
        await cluster.gateways[0].stop()
        for stream in streams:
            _assert_same(await stream, expected)
    assert len(resumed) == 2


async def test_a_stream_survives_as_many_gateways_as_there_are(model: Path, resumed: dict[str, Request]) -> None:
    plan = plan_for(model)
    kind = _KINDS["logprobs and penalties"]
    async with (
        served(plan, config_for(plan), replicas=2, gateways=3, step_s=_STEP_S) as cluster,
        AsyncClient(cluster.addresses, timeout=200) as client,
    ):
        expected = await _undisturbed(cluster, kind)
        output, killed = Completion(), 0
        async for chunk in kind.stream(client, request_id="x"):
            output.add(chunk)
            if killed < 2 and len(output.token_ids) > 60 * (killed + 1):
                await cluster.kill(next(i for i, g in enumerate(cluster.gateways) if g._admission.requests))
                killed += 1
                if killed == 2:  # and the replica that it runs on, too
                    await cluster.lose(max(cluster.engines, key=lambda number: cluster.engines[number].load().running))
        _assert_same([output], expected)
        _assert_times_are_of_the_whole(output, resumed["x"])
        assert len(resumed["x"].resume.outputs[0].token_ids) > 120
        assert _counted(cluster, "phalanx_streams_resumed_total", cause="gateway") == 2
        # The undisturbed one's and this one's, which had it once.
        assert _counted(cluster, "phalanx_request_ttft_seconds_count", tenant="anonymous") == 2


def _counted(cluster: Served, name: str, **labels: str) -> float:
    """By all gateways together."""
    return sum(gateway._metrics.registry.get_sample_value(name, labels) or 0 for gateway in cluster.gateways)


async def test_the_only_gateway_may_come_back(cluster: Served, resumed: dict[str, Request]) -> None:
    kind = _KINDS["chat"]
    expected = await _undisturbed(cluster, kind)
    begun = asyncio.Event()
    async with AsyncClient(cluster.address, timeout=200) as client:
        stream = asyncio.create_task(_whole(kind.stream(client, request_id="x"), begun))
        await begun.wait()
        await cluster.gateway.stop()
        await asyncio.sleep(0.5)
        successor = Gateway(GatewayConfig(cluster.address, cluster.registry_address, SECRET))
        await successor.start()
        _assert_same(await stream, expected)
        await successor.stop()
    assert resumed


async def test_what_has_not_begun_is_sent_to_another_address(cluster: Served) -> None:
    async with AsyncClient(["127.0.0.1:9", *cluster.addresses], timeout=200) as client:
        for _ in range(4):
            assert len((await client.generate(_PROMPT, max_tokens=2, ignore_eos=True)).token_ids) == 2
            assert await client.tokenize("abc")
        await cluster.gateways[0].drain(0)  # it answers, but takes nothing any more
        for _ in range(4):
            assert len((await client.generate(_PROMPT, max_tokens=2, ignore_eos=True)).token_ids) == 2
    with Client(f"127.0.0.1:9,{cluster.addresses[1]}") as blocking:
        output = await asyncio.to_thread(blocking.generate, _PROMPT, max_tokens=2, ignore_eos=True)
        assert len(output.token_ids) == 2


async def test_a_call_that_nobody_answers_fails_at_once() -> None:
    addresses = ["127.0.0.1:9", "localhost:9"]
    start = time.monotonic()
    async with AsyncClient(addresses) as client:
        with pytest.raises(Unavailable, match=r"no gateway answers at 127\.0\.0\.1:9, localhost:9: is `phalanx serve`"):
            await client.generate("x")
        with pytest.raises(Unavailable, match="no gateway answers"):
            await client.model()
    with Client(addresses) as blocking, pytest.raises(Unavailable, match="no gateway answers"):
        await asyncio.to_thread(blocking.generate, "x")
    assert time.monotonic() - start < 30  # not the 60 s for which a stream that has begun is tried


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        # In gRPC's words, which depend on what it noticed first.
        ({"reconnect_s": 0.5}, Unavailable, "Cancelling all calls|Stream removed"),
        ({"reconnect_s": 0.0}, Unavailable, "Cancelling all calls|Stream removed"),
        ({"timeout": 1.5}, DeadlineExceeded, "Deadline"),
    ],
)
async def test_a_stream_is_given_up_in_time(
    cluster: Served, limits: dict[str, float], error: type[Exception], message: str
) -> None:
    begun = asyncio.Event()
    async with AsyncClient(cluster.address, **limits) as client:  # type: ignore[arg-type]
        stream = asyncio.create_task(_whole(_KINDS["greedy"].stream(client), begun))
        await begun.wait()
        await cluster.kill(0)
        async with asyncio.timeout(10):
            with pytest.raises(error, match=message):
                await stream


async def test_leaving_while_it_reconnects(cluster: Served) -> None:
    kind, begun = _KINDS["greedy"], asyncio.Event()
    async with AsyncClient(cluster.address) as client:
        stream = asyncio.create_task(_whole(kind.stream(client), begun))
        await begun.wait()
        await cluster.kill(0)
        await asyncio.sleep(0.3)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(stream, 5)
    blocking = Client(cluster.addresses[1])
    chunks = blocking.stream(_PROMPT, max_tokens=250, ignore_eos=True)
    await asyncio.to_thread(next, chunks)
    await cluster.kill(1)
    rest = asyncio.create_task(asyncio.to_thread(list, chunks))
    await asyncio.sleep(0.3)
    blocking.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(rest, 5)


async def test_a_resumed_stream_that_is_left_frees_its_kv_blocks(cluster: Served) -> None:
    async with (
        AsyncClient(cluster.addresses) as client,
        aclosing(_KINDS["four outputs"].stream(client)) as stream,  # type: ignore[type-var]
    ):
        killed = False
        async for chunk in stream:
            if not killed:
                await cluster.kill(next(i for i, g in enumerate(cluster.gateways) if g._admission.requests))
                killed = True
            elif chunk.first_token_index > 40:
                break
    engine = cluster.engines[0]
    async with asyncio.timeout(10):
        while (load := engine.load()).running or load.free_blocks < load.total_blocks:
            await asyncio.sleep(0.02)
