"""A gateway that is asked for more than there is: readers that do not read, floods, deadlines, tenants."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import psutil
import pytest
import yaml

from cluster.security.tokens import hash_of
from phalanx import AsyncClient, DeadlineExceeded, InvalidRequest, Overloaded
from phalanx.v1 import inference_pb2, inference_pb2_grpc
from tests.replicas import config_for, plan_for
from tests.served import Served, served
from tests.tiny_models import make_tiny
from workers.engine import Engine
from workers.objectives import Objectives

_SLOW_READER = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
_LONG = 150


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for long sequences."""
    return make_tiny(tmp_path_factory.mktemp("patient"), "llama", max_position_embeddings=4096)


@asynccontextmanager
async def _long_streams(
    model: Path, gateway: dict[str, object] | None = None, **options: object
) -> AsyncIterator[Served]:
    plan = plan_for(model, max_model_len=4096, kv_cache_tokens=8192)
    async with served(plan, config_for(plan, max_model_len=4096, **options), **gateway or {}) as cluster:
        yield cluster


async def _until(holds: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


async def _rest(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def _request(prompt: list[int], tokens: int, **sampling: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=prompt),
        sampling=inference_pb2.Sampling(max_tokens=tokens, ignore_eos=True, **sampling),
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that keeps few tokens for readers who do not read, so that streams need not be long."""
    monkeypatch.setattr("cluster.gateway.generation._MOST_UNREAD", 16)


@pytest.mark.usefixtures("impatient")
async def test_a_reader_that_does_not_read_gives_its_place_to_others_and_misses_nothing(patient: Path) -> None:
    async with _long_streams(patient) as cluster, AsyncClient(cluster.address, timeout=120) as client:
        engine: Engine = cluster.engines[0]
        undisturbed = await client.generate([5, 6, 7], max_tokens=_LONG, ignore_eos=True, temperature=1.0, seed=3)
        async with grpc.aio.insecure_channel(cluster.address, options=_SLOW_READER) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            calls = [stub.Generate(_request([5, 6, 7], _LONG, temperature=1.0, seed=3, logprobs=20)) for _ in range(2)]
            firsts = [await call.read() for call in calls]
            await _until(lambda: engine.load().parked == 2)
            load = engine.load()
            assert load.free_blocks == load.total_blocks
            other = await client.generate([9, 9], max_tokens=20, ignore_eos=True)
            assert len(other.token_ids) == 20
            assert engine.load().parked == 2
            assert cluster.gateway._fleet.usable, "a replica whose sequences all rest is not taken for a hung one"
            for call, first in zip(calls, firsts, strict=True):
                tokens, logprobs = list(first.token_ids), len(first.logprobs)
                while (message := await call.read()) is not grpc.aio.EOF:
                    assert message.first_token_index == len(tokens)
                    tokens += message.token_ids
                    logprobs += len(message.logprobs)
                assert tokens == undisturbed.token_ids
                assert logprobs == _LONG
        await _until(lambda: (engine.load().parked, engine.load().free_blocks) == (0, load.total_blocks))


@pytest.mark.usefixtures("impatient")
async def test_a_reader_that_does_not_read_may_leave(patient: Path) -> None:
    async with _long_streams(patient) as cluster:
        async with grpc.aio.insecure_channel(cluster.address, options=_SLOW_READER) as channel:
            call = inference_pb2_grpc.InferenceStub(channel).Generate(_request([5], _LONG, logprobs=20))
            await call.read()
            await _until(lambda: cluster.engines[0].load().parked == 1)
            call.cancel()
            await _until(lambda: cluster.engines[0].load().parked == 0)
        await _until(lambda: cluster.gateway._admission.requests == 0)


@pytest.mark.usefixtures("impatient")
async def test_a_reader_that_never_reads_holds_nothing_for_longer_than_the_send_timeout(patient: Path) -> None:
    async with (
        _long_streams(patient, {"send_timeout_s": 0.5}) as cluster,
        grpc.aio.insecure_channel(cluster.address, options=_SLOW_READER) as channel,
    ):
        call = inference_pb2_grpc.InferenceStub(channel).Generate(_request([5], _LONG, logprobs=20))
        await call.read()
        await _settled(cluster)
        with pytest.raises(grpc.aio.AioRpcError, match=r"has read nothing for 0\.5 s") as ended:
            await _rest(call)
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_request_whose_deadline_passes_in_the_queue_is_never_read(patient: Path) -> None:
    async with _long_streams(patient, max_running=1) as cluster, AsyncClient(cluster.address) as client:
        engine = cluster.engines[0]
        stream = client.stream([5], max_tokens=3000, ignore_eos=True)
        await anext(stream)  # type: ignore[arg-type]
        async with AsyncClient(cluster.address, timeout=1) as hurried:
            late = asyncio.create_task(hurried.generate([6] * 200, max_tokens=5))
            await _until(lambda: engine.load().waiting == 1 or late.done())
            with pytest.raises(DeadlineExceeded):
                await late
        await _until(lambda: (engine.load().waiting, cluster.gateway._admission.requests) == (0, 1))
        assert engine.load().running == 1
        await stream.aclose()  # type: ignore[attr-defined]


async def test_more_tokens_than_caches_and_queues_hold_are_refused_at_once(model: Path) -> None:
    plan = plan_for(model)  # a KV cache of 4,096 tokens
    config = config_for(plan, max_waiting_tokens=1000)
    async with served(plan, config) as cluster, AsyncClient(cluster.address, timeout=60) as client:
        calls = [client.generate([5] * 100, max_tokens=400, ignore_eos=True) for _ in range(20)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Overloaded)]
        assert len(refused) >= 10
        assert all(0.05 <= error.retry_after_s <= 30 for error in refused)
        assert len((await client.generate([5] * 100, max_tokens=400, ignore_eos=True)).token_ids) == 400


async def test_text_that_cannot_fit_is_refused_before_it_is_made_tokens_of(model: Path) -> None:
    plan = plan_for(model)
    async with served(plan, config_for(plan)) as cluster, AsyncClient(cluster.address, timeout=60) as client:
        with pytest.raises(InvalidRequest, match="3000000 characters"):
            await client.generate("x" * 3_000_000)
        with pytest.raises(InvalidRequest, match="3000004 characters"):
            await client.chat([{"role": "user", "content": "x" * 3_000_000}])


async def test_requests_of_any_size_get_an_error_that_names_the_limit(model: Path) -> None:
    plan = plan_for(model)
    async with served(plan, config_for(plan)) as cluster, AsyncClient(cluster.address, timeout=60) as client:
        with pytest.raises(InvalidRequest, match=r"the prompt has 6000000 tokens, and this cluster .* up to 512"):
            await client.generate([5] * 6_000_000)
        with pytest.raises(InvalidRequest, match=r"token_ids has 6000000 ids, .* up to 512"):
            await client.detokenize([5] * 6_000_000)
        with pytest.raises(InvalidRequest, match="the text has 6000000 characters"):
            await client.tokenize("x" * 6_000_000)
        with pytest.raises(InvalidRequest, match="messages has 1000000 entries"):
            await client.chat([{"role": "u", "content": ""}] * 1_000_000)
        with pytest.raises(
            InvalidRequest, match=r"the request has 180000.. bytes, and the gateway reads up to 16777216"
        ):
            await client.generate("x" * 18_000_000)
        assert len((await client.generate([5], max_tokens=4, ignore_eos=True)).token_ids) == 4


async def test_tenants_share_by_weight_through_the_gateway(model: Path, tmp_path: Path) -> None:
    plan = plan_for(model)
    tokens = tmp_path / "tokens.yaml"
    weights = {"a": 1, "b": 3}
    entries = [{"tenant": name, "sha256": hash_of(name), "weight": weight} for name, weight in weights.items()]
    tokens.write_text(yaml.safe_dump(entries))
    async with served(plan, config_for(plan, max_running=4), tokens=tokens) as cluster:
        async with grpc.aio.insecure_channel(cluster.address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            order: list[str] = []

            async def one(tenant: str) -> None:
                call = stub.Generate(_request([5, 6], 40), metadata=(("authorization", f"Bearer {tenant}"),))
                while await call.read() is not grpc.aio.EOF:
                    pass
                order.append(tenant)

            flood = [asyncio.ensure_future(one("a")) for _ in range(120)]
            await _until(lambda: cluster.engines[0].load().waiting > 40)
            await asyncio.gather(*(one("b") for _ in range(30)))
            assert cluster.engines[0].load().waiting > 10, (
                "the flood still waits when the other tenant has all it wants"
            )
            await asyncio.gather(*flood)
        begin = order.index("b")
        assert Counter(order[begin : begin + 24])["b"] >= 15


async def _flood(cluster: Served, requests: int, connections: int) -> Counter[str]:
    """So many requests at once; how each was answered."""
    channels = [
        grpc.aio.insecure_channel(cluster.address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(connections)
    ]
    stubs = [inference_pb2_grpc.InferenceStub(channel) for channel in channels]

    async def one(number: int) -> str:
        try:
            async for _ in stubs[number % connections].Generate(_request([number % 300, 6], 8), timeout=240):
                pass
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    answers = Counter(await asyncio.gather(*map(one, range(requests))))
    for channel in channels:
        await channel.close()
    return answers


async def _settled(cluster: Served) -> None:
    load: Callable[[], Any] = cluster.engines[0].load
    await _until(lambda: cluster.gateway._admission.requests == 0)
    await _until(lambda: load().free_blocks == load().total_blocks)
    assert cluster.gateway._admission.bounds.held_tokens == 0
    # A parked sequence holds no block, and is gone with the engine's next step.
    await _until(lambda: not cluster.engines[0]._scheduler._by_key)


@pytest.mark.parametrize(
    ("requests", "seconds"), [(1500, 60), pytest.param(20_000, 240, marks=pytest.mark.slow)], ids=["quick", "whole"]
)
async def test_a_flood_is_answered_or_refused_and_leaves_nothing(model: Path, requests: int, seconds: float) -> None:
    plan = plan_for(model)
    async with served(plan, config_for(plan, max_waiting=256), max_sequences=512) as cluster:
        await _flood(cluster, requests, 8)  # what the first one loads and caches is not lost
        await _settled(cluster)
        gc.collect()
        before = psutil.Process().memory_info().rss
        started = monotonic()
        answers = await _flood(cluster, requests, 8)
        assert monotonic() - started < seconds
        assert set(answers) <= {"OK", "RESOURCE_EXHAUSTED"}
        assert answers["OK"] >= 256
        await _settled(cluster)
        gc.collect()
        grown = psutil.Process().memory_info().rss - before
        assert grown < 48 << 20


@pytest.mark.slow
async def test_2000_streams_at_once(model: Path) -> None:
    plan = plan_for(model)
    config = config_for(plan, max_waiting=2000)
    async with (
        served(plan, config, max_sequences=2000) as cluster,
        AsyncClient(cluster.address, timeout=280) as client,
    ):
        outputs = await asyncio.gather(
            *(client.generate([number % 300, 7], max_tokens=16, ignore_eos=True) for number in range(2000))
        )
        assert all(len(output.token_ids) == 16 for output in outputs)
        for number in range(300):
            assert outputs[number].token_ids == outputs[number + 300].token_ids == outputs[number + 1500].token_ids
        await _settled(cluster)


async def test_who_would_be_too_late_for_the_objective_is_told_to_come_again(patient: Path) -> None:
    objectives = Objectives(ttft_s=0.3, tpot_s=10.0)
    async with (
        _long_streams(patient, max_running=1, objectives=objectives) as cluster,
        AsyncClient(cluster.address, timeout=60) as client,
    ):
        await client.generate([1, 2, 3, 4], max_tokens=2, ignore_eos=True)
        first = asyncio.ensure_future(client.generate([1, 2, 3], max_tokens=2000, ignore_eos=True))
        await _until(lambda: cluster.engines[0].load().running)
        asked = monotonic()
        with pytest.raises(Overloaded, match="within the deployment's objective"):
            await client.generate([4, 5, 6], max_tokens=2, ignore_eos=True)
        assert 0.2 < monotonic() - asked < 2
        assert len((await first).token_ids) == 2000
        report = (await client.cluster()).objectives
    assert (report.ttft_seconds, report.tpot_seconds) == (0.3, 10.0)
    assert (report.finished, report.kept, report.shed) == (2, 2, 1)
