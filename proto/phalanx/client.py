"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Unpack

import grpc

from phalanx.connection import DEFAULT_ADDRESS, Connection, Tls
from phalanx.errors import from_rpc
from phalanx.messages import Chunk, Completion, Messages, Prompt, SamplingOptions, chat_request, chunk, generate_request
from phalanx.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc


class Client:
    """Talks to the gateway at `address` (host:port). May be used from several threads.

    `timeout` is the most seconds a call may take, if any. Leaving a stream early cancels it on the server. Every
    method may raise PhalanxError and its kinds: InvalidRequest, Overloaded, Unavailable, DeadlineExceeded.
    """

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
        self._channel = connection.channel(self._address)
        self._metadata = connection.metadata
        self._timeout = timeout
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminStub(self._channel)

    def generate(
        self, prompt: Prompt, *, priority: int = 0, request_id: str = "", **options: Unpack[SamplingOptions]
    ) -> Completion:
        """Continues a prompt, given as text or as token ids."""
        return self._completions(1, self.stream(prompt, priority=priority, request_id=request_id, **options))[0]

    def generate_n(
        self, prompt: Prompt, n: int, *, priority: int = 0, request_id: str = "", **options: Unpack[SamplingOptions]
    ) -> list[Completion]:
        """Continues a prompt in `n` ways; with a temperature they differ."""
        chunks = self.stream(prompt, n=n, priority=priority, request_id=request_id, **options)
        return self._completions(n, chunks)

    def stream(
        self,
        prompt: Prompt,
        *,
        n: int = 1,
        priority: int = 0,
        request_id: str = "",
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """Continues a prompt, token by token as they are generated."""
        request = generate_request(prompt, n, priority, request_id, options)
        return self._chunks(self._inference.Generate(request, timeout=self._timeout, metadata=self._metadata), chunk)

    def chat(
        self, messages: Messages, *, priority: int = 0, request_id: str = "", **options: Unpack[SamplingOptions]
    ) -> Completion:
        """Answers a conversation of messages with a "role" and a "content"."""
        return self._completions(1, self.chat_stream(messages, priority=priority, request_id=request_id, **options))[0]

    def chat_stream(
        self,
        messages: Messages,
        *,
        n: int = 1,
        priority: int = 0,
        request_id: str = "",
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """Answers a conversation, token by token."""
        request = chat_request(messages, n, priority, request_id, options)
        return self._chunks(
            self._inference.Chat(request, timeout=self._timeout, metadata=self._metadata),
            lambda response: chunk(response.output),
        )

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """The model's token ids of `text`."""
        request = inference_pb2.TokenizeRequest(text=text, omit_special=not add_special)
        return list(self._call(self._inference.Tokenize, request).token_ids)

    def detokenize(self, token_ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of token ids."""
        request = inference_pb2.DetokenizeRequest(token_ids=token_ids, keep_special=keep_special)
        return str(self._call(self._inference.Detokenize, request).text)

    def model(self) -> inference_pb2.GetModelResponse:
        """What is served."""
        response: inference_pb2.GetModelResponse = self._call(self._inference.GetModel, inference_pb2.GetModelRequest())
        return response

    def cluster(self) -> admin_pb2.GetClusterResponse:
        """The plan, the replicas and their load, as the gateway knows them."""
        response: admin_pb2.GetClusterResponse = self._call(self._admin.GetCluster, admin_pb2.GetClusterRequest())
        return response

    def drain(self, seconds: int = 30) -> int:
        """Makes the gateway take no more requests; returns how many had not finished after `seconds`."""
        request = admin_pb2.DrainRequest(seconds=seconds)
        return int(self._call(self._admin.Drain, request).unfinished_requests)

    def close(self) -> None:
        """Ends the connection, and every stream on it."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc(error, self._address) from None

    @staticmethod
    def _completions(n: int, chunks: Iterable[Chunk]) -> list[Completion]:
        completions = [Completion() for _ in range(n)]
        for news in chunks:
            completions[news.index].add(news)
        return completions

    def _chunks(self, call: Any, convert: Any) -> Iterator[Chunk]:
        try:
            for response in call:
                yield convert(response)
        except grpc.RpcError as error:
            raise from_rpc(error, self._address) from None
        finally:
            call.cancel()
