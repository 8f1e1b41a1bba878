"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Unpack

import grpc

from phalanx.base import BaseClient
from phalanx.cancellation import raise_if_cancelled
from phalanx.connection import Connection, Gateway
from phalanx.errors import ended_early, from_rpc
from phalanx.messages import Chunk, Completion, Messages, Prompt, SamplingOptions, chat_request, generate_request
from phalanx.resumption import Request, Stream
from phalanx.route import Route
from phalanx.v1 import admin_pb2, inference_pb2, registry_pb2


class AsyncClient(BaseClient):
    """As `phalanx.Client`, for one event loop."""

    async def generate(
        self, prompt: Prompt, *, priority: int = 0, request_id: str = "", **options: Unpack[SamplingOptions]
    ) -> Completion:
        """Continues a prompt, given as text or as token ids."""
        chunks = self.stream(prompt, priority=priority, request_id=request_id, **options)
        return (await _completions(1, chunks))[0]

    async def generate_n(
        self, prompt: Prompt, n: int, *, priority: int = 0, request_id: str = "", **options: Unpack[SamplingOptions]
    ) -> list[Completion]:
        """Continues a prompt in `n` ways; with a temperature they differ."""
        return await _completions(n, self.stream(prompt, n=n, priority=priority, request_id=request_id, **options))

    def stream(
        self,
        prompt: Prompt,
        *,
        n: int = 1,
        priority: int = 0,
        request_id: str = "",
        **options: Unpack[SamplingOptions],
    ) -> AsyncIterator[Chunk]:
        """Continues a prompt, token by token as they are generated."""
        request = generate_request(prompt, n, priority, request_id, options)
        return self._chunks(request)

    async def chat(
        self, messages: Messages, *, priority: int = 0, request_id: str = "", **options: Unpack[SamplingOptions]
    ) -> Completion:
        """Answers a conversation of messages with a "role" and a "content"."""
        chunks = self.chat_stream(messages, priority=priority, request_id=request_id, **options)
        return (await _completions(1, chunks))[0]

    def chat_stream(
        self,
        messages: Messages,
        *,
        n: int = 1,
        priority: int = 0,
        request_id: str = "",
        **options: Unpack[SamplingOptions],
    ) -> AsyncIterator[Chunk]:
        """Answers a conversation, token by token."""
        request = chat_request(messages, n, priority, request_id, options)
        return self._chunks(request)

    async def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """The model's token ids of `text`."""
        request = inference_pb2.TokenizeRequest(text=text, omit_special=not add_special)
        return list((await self._call(lambda gateway: gateway.inference.Tokenize, request)).token_ids)

    async def detokenize(self, token_ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of token ids."""
        request = inference_pb2.DetokenizeRequest(token_ids=token_ids, keep_special=keep_special)
        return str((await self._call(lambda gateway: gateway.inference.Detokenize, request)).text)

    async def model(self) -> inference_pb2.GetModelResponse:
        """What is served."""
        request = inference_pb2.GetModelRequest()
        response: inference_pb2.GetModelResponse = await self._call(lambda gateway: gateway.inference.GetModel, request)
        return response

    async def cluster(self) -> admin_pb2.GetClusterResponse:
        """The plan, the replicas and their load, as the gateway knows them."""
        request = admin_pb2.GetClusterRequest()
        response: admin_pb2.GetClusterResponse = await self._call(lambda gateway: gateway.admin.GetCluster, request)
        return response

    async def drain(self, seconds: int = 30) -> int:
        """Makes the gateway take no more requests; returns how many had not finished after `seconds`. Wants a client of
        one address."""
        request = self._drain_request(seconds)
        return int((await self._call(lambda gateway: gateway.admin.Drain, request)).unfinished_requests)

    async def scale(self, replicas: int) -> int:
        """Changes the number of replicas of the deployment; returns how many are ready then."""
        request = registry_pb2.ScaleRequest(replicas=replicas)
        return int((await self._call(lambda gateway: gateway.admin.Scale, request)).ready)

    async def close(self) -> None:
        """Ends the connections, and every stream on them."""
        self._closed.set()
        for gateway in self._gateways:
            await gateway.channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _connect(self, connection: Connection) -> list[Gateway]:
        return connection.aio_gateways()

    async def _call(self, method: Callable[[Gateway], Any], request: Any) -> Any:
        route = self._route()
        while True:
            call = method(self._gateways[route.place])
            try:
                return await call(request, timeout=route.timeout, metadata=self._metadata)
            except grpc.aio.AioRpcError as failure:
                raise_if_cancelled()
                route.failed(from_rpc(failure, self._addresses))

    def _chunks(self, request: Request) -> AsyncIterator[Chunk]:
        stream, route = Stream(request), self._route()
        return self._follow(stream, route, self._open(stream, route))

    async def _follow(self, stream: Stream, route: Route, call: Any) -> AsyncIterator[Chunk]:
        while True:
            error = ended_early()
            try:
                async for response in call:
                    route.arrived()
                    yield stream.take(response)
            except grpc.aio.AioRpcError as failure:
                raise_if_cancelled()
                error = from_rpc(failure, self._addresses)
            finally:
                call.cancel()
            if stream.complete:
                return
            await asyncio.sleep(route.failed(error, stream))
            if self._closed.is_set():
                raise error
            call = self._open(stream, route)


async def _completions(n: int, chunks: AsyncIterator[Chunk]) -> list[Completion]:
    completions = [Completion() for _ in range(n)]
    async for news in chunks:
        completions[news.index].add(news)
    return completions
