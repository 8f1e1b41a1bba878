"""The gateway through a real channel, in front of real replicas whose ranks are threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.text import Tokenizer, load_tokenizer
from phalanx import AsyncClient, Chunk, Client, DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from phalanx.v1 import inference_pb2, inference_pb2_grpc
from tests.oracle.references import Reference
from tests.replicas import config_for, plan_for
from tests.served import Served, served
from tests.tiny_models import make_tiny

_PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


@pytest.fixture
async def cluster(model: Path) -> AsyncIterator[Served]:
    plan = plan_for(model, tp=2)
    async with served(plan, config_for(plan)) as running:
        yield running


@pytest.fixture
async def client(cluster: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(cluster.address, timeout=60) as connected:
        yield connected


async def _idle(cluster: Served, replica: int = 0) -> None:
    """Waits until the replica has freed every KV block that a sequence held."""
    engine = cluster.engines[replica]
    async with asyncio.timeout(10):
        while (load := engine.load()).running or load.waiting or load.free_blocks < load.total_blocks:
            await asyncio.sleep(0.02)


async def test_tokens_that_waited_for_each_other_come_whole_and_in_order(
    model: Path, tokenizer: Tokenizer, reference: Reference
) -> None:
    plan = plan_for(model)
    prompts = [tokenizer.encode(text) for text in (_PROMPT, "jumps over", "the lazy dog")]
    async with (
        served(plan, config_for(plan, news_interval_s=60.0)) as cluster,
        AsyncClient(cluster.address, timeout=60) as client,
    ):
        options = {"max_tokens": 48, "ignore_eos": True, "logprobs": 0}
        streams = [[chunk async for chunk in client.stream(prompt, **options)] for prompt in prompts[:1]]
        others = await asyncio.gather(*(client.generate(prompt, **options) for prompt in prompts[1:]))
    assert [len(chunk.token_ids) for chunk in streams[0]] == [1, 47]
    found = [[token for chunk in streams[0] for token in chunk.token_ids], *(other.token_ids for other in others)]
    assert found == [reference.greedy(prompt, 48) for prompt in prompts]


async def test_tokens_are_those_of_transformers_and_text_is_theirs(
    client: AsyncClient, tokenizer: Tokenizer, reference: Reference
) -> None:
    prompt = tokenizer.encode(_PROMPT)
    expected = reference.greedy(prompt, 48)
    chunks = [chunk async for chunk in client.stream(_PROMPT, max_tokens=48, ignore_eos=True)]
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    assert tokens == expected
    assert "".join(chunk.text for chunk in chunks) == tokenizer.decode(expected)
    assert len(chunks) > 20  # they came one by one
    last = chunks[-1]
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(prompt), 48)
    assert 0 < last.usage.ttft_seconds < last.usage.duration_seconds
    by_ids = await client.generate(prompt, max_tokens=48, ignore_eos=True)
    assert by_ids.token_ids == expected


def test_the_blocking_client_says_the_same(model: Path, reference: Reference, tokenizer: Tokenizer) -> None:
    async def serve(asked: asyncio.Queue[str]) -> None:
        plan = plan_for(model)
        async with served(plan, config_for(plan)) as cluster:
            asked.put_nowait(await asyncio.to_thread(ask, cluster.address))

    def ask(address: str) -> str:
        with Client(address, timeout=60) as client:
            assert client.tokenize("abc") == tokenizer.encode("abc")
            assert client.detokenize(tokenizer.encode("abc")) == "abc"
            assert client.model().vocab_size == 307
            assert len(client.generate_n(_PROMPT, 2, max_tokens=3, temperature=1.0)) == 2
            assert client.chat([{"role": "user", "content": "x"}], max_tokens=2).usage is not None
            with pytest.raises(InvalidRequest):
                client.generate("")
            return client.generate(_PROMPT, max_tokens=16, ignore_eos=True).text

    async def run() -> str:
        asked: asyncio.Queue[str] = asyncio.Queue()
        await serve(asked)
        return await asked.get()

    assert asyncio.run(run()) == tokenizer.decode(reference.greedy(tokenizer.encode(_PROMPT), 16))


async def test_a_conversation_uses_the_models_template(
    client: AsyncClient, tokenizer: Tokenizer, reference: Reference
) -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    answer = await client.chat(messages, max_tokens=12, ignore_eos=True)
    assert answer.token_ids == reference.greedy(tokenizer.chat_prompt(messages), 12)
    with pytest.raises(InvalidRequest, match="unknown role wizard"):
        await client.chat([{"role": "wizard", "content": "x"}])


async def test_outputs_of_one_request_differ_and_can_be_had_again(client: AsyncClient) -> None:
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    outputs = await client.generate_n(_PROMPT, 4, **options)  # type: ignore[arg-type]
    assert len({tuple(output.token_ids) for output in outputs}) == 4
    again = await client.generate_n(_PROMPT, 4, **options)  # type: ignore[arg-type]
    assert [output.token_ids for output in again] == [output.token_ids for output in outputs]


async def test_stop_strings_that_span_tokens_are_not_leaked(
    cluster: Served, client: AsyncClient, tokenizer: Tokenizer, reference: Reference
) -> None:
    tokens = reference.greedy(tokenizer.encode(_PROMPT), 64)
    text = tokenizer.decode(tokens)
    start = next(i for i in range(4, len(text) - 3) if "\ufffd" not in text[i : i + 3])
    stop = text[start : start + 3]
    shown = ""
    async for chunk in client.stream(_PROMPT, max_tokens=64, ignore_eos=True, stop=[stop]):
        shown += chunk.text
        assert stop not in shown
    assert shown == text[: text.index(stop)]
    assert chunk.finish_reason == "stop"
    await _idle(cluster)


async def test_stop_tokens_and_logprobs(client: AsyncClient, tokenizer: Tokenizer, reference: Reference) -> None:
    tokens = reference.greedy(tokenizer.encode(_PROMPT), 12)
    output = await client.generate(_PROMPT, max_tokens=12, ignore_eos=True, stop_token_ids=[tokens[8]], logprobs=3)
    end = tokens.index(tokens[8]) + 1
    assert output.token_ids == tokens[:end]
    assert output.text == tokenizer.decode(tokens[: end - 1])
    assert output.finish_reason == "stop"
    assert len(output.logprobs) == end
    for token, entry in zip(output.token_ids, output.logprobs, strict=True):
        assert entry.top[0] == (token, entry.logprob)  # greedy takes the likeliest
        assert len(entry.top) == 3


async def test_leaving_a_stream_frees_its_kv_blocks(cluster: Served, client: AsyncClient) -> None:
    async with aclosing(client.stream(_PROMPT, max_tokens=400, ignore_eos=True)) as stream:  # type: ignore[type-var]
        async for chunk in stream:
            if chunk.first_token_index > 3:
                break
    await _idle(cluster)
    assert cluster.gateway._admission.requests == 0


async def test_a_deadline_frees_its_kv_blocks(cluster: Served) -> None:
    async with AsyncClient(cluster.address, timeout=0.05) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate_n(_PROMPT, 16, max_tokens=480, ignore_eos=True)
    await _idle(cluster)


async def test_64_clients_get_what_each_would_get_alone(
    client: AsyncClient, tokenizer: Tokenizer, reference: Reference
) -> None:
    prompts = [f"{word} {number}" for number in range(16) for word in ("red", "green", "blue", "a longer prompt")]
    outputs = await asyncio.gather(*(client.generate(prompt, max_tokens=12, ignore_eos=True) for prompt in prompts))
    for prompt, output in zip(prompts[::5], outputs[::5], strict=True):
        assert output.token_ids == reference.greedy(tokenizer.encode(prompt), 12)
    assert all(len(output.token_ids) == 12 for output in outputs)


async def test_wrong_requests_are_refused_with_the_field(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match=r"token_ids\[2\] is 307"):
        await client.generate([1, 2, 307])
    with pytest.raises(InvalidRequest, match="the prompt is empty"):
        await client.generate([])
    with pytest.raises(InvalidRequest, match=r"sequences of up to 512"):
        await client.generate([1] * 600)
    with pytest.raises(InvalidRequest, match="temperature"):
        await client.generate("x", temperature=-1.0)
    with pytest.raises(InvalidRequest, match="n is 99"):
        await client.generate_n("x", 99)
    with pytest.raises(InvalidRequest, match="messages is empty"):
        await client.chat([])


async def test_bytes_that_are_no_message_are_the_clients_fault(cluster: Served) -> None:
    async with grpc.aio.insecure_channel(cluster.address) as channel:
        method = "/phalanx.v1.Inference/Tokenize"
        bad_text = b"\x0a\x02\xff\xfe"  # field 1, a string of two bytes that are no UTF-8
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(method)(bad_text)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "UTF-8" in (caught.value.details() or "")
        stream = channel.unary_stream("/phalanx.v1.Inference/Generate")(b"\x0a\x05ab")  # shorter than it says
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        request = inference_pb2.GenerateRequest()  # neither text nor token ids
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inference_pb2_grpc.InferenceStub(channel).Generate(request).read()
        assert "the request has no prompt" in (caught.value.details() or "")


async def test_a_full_gateway_says_when_to_come_again(model: Path) -> None:
    plan = plan_for(model)
    async with served(plan, config_for(plan), max_sequences=4) as cluster, AsyncClient(cluster.address) as client:
        busy = [asyncio.ensure_future(client.generate("x", max_tokens=300, ignore_eos=True)) for _ in range(4)]
        async with asyncio.timeout(10):
            while cluster.gateway._admission.requests < 4:
                await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match="takes up to 4 ") as caught:
            await client.generate("x", max_tokens=1)
        assert 0.05 <= caught.value.retry_after_s <= 10
        assert all(len(output.token_ids) == 300 for output in await asyncio.gather(*busy))
        assert len((await client.generate("x", max_tokens=1, ignore_eos=True)).token_ids) == 1


async def test_full_replicas_are_told_apart_from_a_full_gateway(model: Path) -> None:
    plan = plan_for(model)
    config = config_for(plan, max_running=1, max_waiting=1)
    async with served(plan, config) as cluster, AsyncClient(cluster.address) as client:
        calls = [client.generate("x", max_tokens=200, ignore_eos=True) for _ in range(8)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Overloaded)]
        assert 1 <= len(refused) <= 7
        assert all("every replica's queue is full" in str(error) for error in refused)
        assert all(len(r.token_ids) == 200 for r in results if not isinstance(r, BaseException))


async def test_replicas_share_the_work(model: Path) -> None:
    plan = plan_for(model)
    async with served(plan, config_for(plan), 2) as cluster, AsyncClient(cluster.address) as client:
        await asyncio.gather(*(client.generate("x", max_tokens=100, ignore_eos=True) for _ in range(12)))
        tokens = [entry.load.generated_tokens for entry in (await client.cluster()).replicas]
        assert all(500 <= count <= 700 for count in tokens)
        assert sum(tokens) == 1200


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
async def test_a_stream_goes_on_when_its_replica_is_lost(model: Path, temperature: float) -> None:
    options = {"max_tokens": 400, "temperature": temperature, "seed": 11, "ignore_eos": True, "logprobs": 1}
    plan = plan_for(model)
    async with served(plan, config_for(plan), 2) as cluster, AsyncClient(cluster.address, timeout=60) as client:
        undisturbed = await client.generate(_PROMPT, **options)  # type: ignore[arg-type]
        text, tokens, logprobs = "", [], []  # type: ignore[var-annotated]
        async for chunk in client.stream(_PROMPT, **options):  # type: ignore[arg-type]
            if len(cluster.replicas) == 2 and len(tokens) > 20:
                loads = {r.replica.id: r.load.running for r in (await client.cluster()).replicas}
                await cluster.lose(max(loads, key=lambda number: loads[number]))
            assert chunk.first_token_index == len(tokens)
            text += chunk.text
            tokens += chunk.token_ids
            logprobs += [entry.logprob for entry in chunk.logprobs]
        assert len(cluster.replicas) == 1
        assert tokens == undisturbed.token_ids
        assert text == undisturbed.text
        assert logprobs == pytest.approx([entry.logprob for entry in undisturbed.logprobs], abs=1e-4)


async def test_without_a_replica_a_stream_ends_with_the_reason(model: Path) -> None:
    plan = plan_for(model)
    async with served(plan, config_for(plan), recovery_s=0.5) as cluster, _hasty(cluster) as client:
        stream = client.stream(_PROMPT, max_tokens=480, ignore_eos=True)
        await anext(stream)  # type: ignore[arg-type]
        await cluster.lose(0)
        with pytest.raises(Unavailable, match=r"none replaced it within"):
            await _rest(stream)
        with pytest.raises(Unavailable, match="no replica is ready"):
            await client.generate("x")


async def test_draining_lets_streams_finish_and_takes_no_more(cluster: Served, client: AsyncClient) -> None:
    stream = client.stream(_PROMPT, max_tokens=200, ignore_eos=True)
    first = await anext(stream)  # type: ignore[arg-type]
    drained = asyncio.ensure_future(client.drain(60))
    async with asyncio.timeout(10):
        while not (await client.cluster()).draining:
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable, match="shutting down"):
        await client.generate("x")
    assert await _health(cluster) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert len(first.token_ids) + len(await _rest(stream)) == 200
    assert await drained == 0


async def test_a_gateway_that_stops_says_so_to_those_it_leaves(model: Path) -> None:
    plan = plan_for(model)
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(served(plan, config_for(plan)))
        async with _hasty(cluster) as client:
            stream = client.stream(_PROMPT, max_tokens=480, ignore_eos=True)
            await anext(stream)  # type: ignore[arg-type]
            rest = asyncio.ensure_future(_rest(stream))
            assert await cluster.gateway.drain(0) == 1
            await stack.aclose()
            with pytest.raises(Unavailable, match="stopped before the request had finished"):
                await rest


async def test_health_and_reflection_for_tools(cluster: Served) -> None:
    assert await _health(cluster) == health_pb2.HealthCheckResponse.SERVING
    async with grpc.aio.insecure_channel(cluster.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    async with grpc.aio.insecure_channel(cluster.address) as channel:
        question = reflection_pb2.ServerReflectionRequest(list_services="")

        def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
            yield question

        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(questions())
        names = {service.name for service in (await call.read()).list_services_response.service}
    assert {"phalanx.v1.Inference", "phalanx.v1.Admin", "grpc.health.v1.Health"} <= names


async def test_status_shows_the_plan_and_the_load(client: AsyncClient, model: Path) -> None:
    state = await client.cluster()
    assert state.deployment == "test"
    assert str(model) in state.plan_json
    assert [entry.connected for entry in state.replicas] == [True]
    assert state.replicas[0].load.total_blocks == 256


async def test_a_model_without_a_tokenizer_is_served_by_token_ids(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path, "qwen3")
    plan = plan_for(folder)
    async with served(plan, config_for(plan)) as cluster, AsyncClient(cluster.address, timeout=60) as client:
        output = await client.generate([5, 6, 7], max_tokens=8, ignore_eos=True)
        assert output.token_ids == Reference(folder).greedy([5, 6, 7], 8)
        assert output.text == ""
        with pytest.raises(InvalidRequest, match="send token_ids"):
            await client.generate("text")
        with pytest.raises(InvalidRequest, match="use stop_token_ids"):
            await client.generate([5], stop=["x"])


@pytest.mark.slow  # as long as three pings
async def test_idle_connections_outlive_their_pings(cluster: Served, client: AsyncClient) -> None:
    """Replicas once took the gateway's pings for an attack and hung up, after three of them."""
    link = cluster.gateway._fleet.usable[0]
    for _ in range(340):
        await asyncio.sleep(0.05)
        assert link.connected
    assert len((await client.generate("x", max_tokens=2, ignore_eos=True)).token_ids) == 2


def _hasty(cluster: Served) -> AsyncClient:
    """A client that hears of a stream's end instead of going on with it."""
    return AsyncClient(cluster.address, reconnect_s=0)


async def _rest(stream: AsyncIterator[Chunk]) -> list[int]:
    return [token async for chunk in stream for token in chunk.token_ids]


async def _health(cluster: Served) -> int:
    async with grpc.aio.insecure_channel(cluster.address) as channel:
        request = health_pb2.HealthCheckRequest(service="phalanx.v1.Inference")
        return (await health_pb2_grpc.HealthStub(channel).Check(request)).status
