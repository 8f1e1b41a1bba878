"""The blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Unpack

import grpc

from phalanx.base import BaseClient
from phalanx.connection import Connection, Gateway
from phalanx.errors import ended_early, from_rpc
from phalanx.messages import Chunk, Completion, Messages, Prompt, SamplingOptions, chat_request, generate_request
from phalanx.resumption import Request, Stream
from phalanx.route import Route
from phalanx.v1 import admin_pb2, inference_pb2, registry_pb2


class Client(BaseClient):
    """Talks to the gateways at `addresses`: "HOST:PORT", several such separated by commas, or a sequence of them. Calls
    take turns at the addresses, and at the records of a name that has several. May be used from several threads.

    A stream whose gateway dies or shuts down goes on at another one, or at the same one again, with no token lost,
    repeated or changed, if one takes it within `reconnect_s` seconds; 0 switches that off. `timeout` is the most
    seconds a call may take over all of it, if any. Leaving a stream early cancels it on the server. `token` is shown to
    the gateways as a bearer token: with `tls`, within this machine, or where `insecure_token` says that the network is
    trusted.

    The constructor may raise InvalidConnection, every method PhalanxError and its kinds: InvalidRequest, Overloaded,
    Unavailable, DeadlineExceeded.
    """

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
        return self._chunks(request)

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
        return self._chunks(request)

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """The model's token ids of `text`."""
        request = inference_pb2.TokenizeRequest(text=text, omit_special=not add_special)
        return list(self._call(lambda gateway: gateway.inference.Tokenize, request).token_ids)

    def detokenize(self, token_ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of token ids."""
        request = inference_pb2.DetokenizeRequest(token_ids=token_ids, keep_special=keep_special)
        return str(self._call(lambda gateway: gateway.inference.Detokenize, request).text)

    def model(self) -> inference_pb2.GetModelResponse:
        """What is served."""
        response: inference_pb2.GetModelResponse = self._call(
            lambda gateway: gateway.inference.GetModel, inference_pb2.GetModelRequest()
        )
        return response

    def cluster(self) -> admin_pb2.GetClusterResponse:
        """The plan, the replicas and their load, as the gateway knows them."""
        response: admin_pb2.GetClusterResponse = self._call(
            lambda gateway: gateway.admin.GetCluster, admin_pb2.GetClusterRequest()
        )
        return response

    def drain(self, seconds: int = 30) -> int:
        """Makes the gateway take no more requests; returns how many had not finished after `seconds`. Wants a client of
        one address."""
        request = self._drain_request(seconds)
        return int(self._call(lambda gateway: gateway.admin.Drain, request).unfinished_requests)

    def scale(self, replicas: int) -> int:
        """Changes the number of replicas of the deployment; returns how many are ready then."""
        request = registry_pb2.ScaleRequest(replicas=replicas)
        return int(self._call(lambda gateway: gateway.admin.Scale, request).ready)

    def close(self) -> None:
        """Ends the connections, and every stream on them."""
        self._closed.set()
        for gateway in self._gateways:
            gateway.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, connection: Connection) -> list[Gateway]:
        return connection.gateways()

    def _call(self, method: Callable[[Gateway], Any], request: Any) -> Any:
        route = self._route()
        while True:
            call = method(self._gateways[route.place])
            try:
                return call(request, timeout=route.timeout, metadata=self._metadata)
            except grpc.RpcError as failure:
                route.failed(from_rpc(failure, self._addresses))

    @staticmethod
    def _completions(n: int, chunks: Iterable[Chunk]) -> list[Completion]:
        completions = [Completion() for _ in range(n)]
        for news in chunks:
            completions[news.index].add(news)
        return completions

    def _chunks(self, request: Request) -> Iterator[Chunk]:
        stream, route = Stream(request), self._route()
        return self._follow(stream, route, self._open(stream, route))

    def _follow(self, stream: Stream, route: Route, call: Any) -> Iterator[Chunk]:
        while True:
            error = ended_early()
            try:
                for response in call:
                    route.arrived()
                    yield stream.take(response)
            except grpc.RpcError as failure:
                error = from_rpc(failure, self._addresses)
            finally:
                call.cancel()
            if stream.complete:
                return
            if self._closed.wait(route.failed(error, stream)):
                raise error
            call = self._open(stream, route)
