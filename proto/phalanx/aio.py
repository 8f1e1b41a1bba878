"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Unpack

import grpc

from phalanx.connection import DEFAULT_ADDRESS, Connection, Tls
from phalanx.errors import from_rpc
from phalanx.messages import Chunk, Completion, Messages, Prompt, SamplingOptions, chat_request, chunk, generate_request
from phalanx.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc


class AsyncClient:
    """As `phalanx.Client`, for one event loop."""

    def __init__(
        self,
        addresses: str | Sequence[str] = DEFAULT_ADDRESS,
        timeout: float | None = None,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        insecure_token: bool = False,
    ) -> None:
        connection = Connection(addresses, token, tls, insecure_token)
        self._address = connection.addresses[0]
        self._channel = connection.aio_channel(self._address)
        self._metadata = connection.metadata
        self._timeout = timeout
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminStub(self._channel)

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
        return self._chunks(self._inference.Generate(request, timeout=self._timeout, metadata=self._metadata), chunk)

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
        return self._chunks(
            self._inference.Chat(request, timeout=self._timeout, metadata=self._metadata),
            lambda response: chunk(response.output),
        )

    async def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """The model's token ids of `text`."""
        request = inference_pb2.TokenizeRequest(text=text, omit_special=not add_special)
        return list((await self._call(self._inference.Tokenize, request)).token_ids)

    async def detokenize(self, token_ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of token ids."""
        request = inference_pb2.DetokenizeRequest(token_ids=token_ids, keep_special=keep_special)
        return str((await self._call(self._inference.Detokenize, request)).text)

    async def model(self) -> inference_pb2.GetModelResponse:
        """What is served."""
        request = inference_pb2.GetModelRequest()
        response: inference_pb2.GetModelResponse = await self._call(self._inference.GetModel, request)
        return response

    async def cluster(self) -> admin_pb2.GetClusterResponse:
        """The plan, the replicas and their load, as the gateway knows them."""
        request = admin_pb2.GetClusterRequest()
        response: admin_pb2.GetClusterResponse = await self._call(self._admin.GetCluster, request)
        return response

    async def drain(self, seconds: int = 30) -> int:
        """Makes the gateway take no more requests; returns how many had not finished after `seconds`."""
        request = admin_pb2.DrainRequest(seconds=seconds)
        return int((await self._call(self._admin.Drain, request)).unfinished_requests)

    async def close(self) -> None:
        """Ends the connection, and every stream on it."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._address) from None

    async def _chunks(self, call: Any, convert: Any) -> AsyncIterator[Chunk]:
        try:
            async for response in call:
                yield convert(response)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._address) from None
        finally:
            call.cancel()


async def _completions(n: int, chunks: AsyncIterator[Chunk]) -> list[Completion]:
    completions = [Completion() for _ in range(n)]
    async for news in chunks:
        completions[news.index].add(news)
    return completions
