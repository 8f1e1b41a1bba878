"""Puts an engine on the network: one bidirectional stream for each gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from time import monotonic

import grpc

from phalanx.v1 import inference_pb2, replica_pb2, replica_pb2_grpc
from workers.engine import Engine, EngineFull, EngineStopped
from workers.observation.followed import Followed, Follower
from workers.observation.sequence_spans import write_spans
from workers.observation.traces import Traces
from workers.outbox import Outbox
from workers.request import FinishReason, Output, Request, SamplingParams
from workers.security.peers import PeerTls, bind
from workers.security.secret import SecretCheck

log = logging.getLogger(__name__)

_BEAT_S = 1.0  # a gateway hears at least this often that this process lives, and how far its steps are

# Gateways ping every few seconds, to notice that this machine is gone.
SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.so_reuseport", 0),
]

Context = grpc.aio.ServicerContext[replica_pb2.AttachRequest, replica_pb2.AttachResponse]

_ENDS = {
    FinishReason.STOP: replica_pb2.SEQUENCE_END_STOP,
    FinishReason.LENGTH: replica_pb2.SEQUENCE_END_LENGTH,
    FinishReason.CANCELLED: replica_pb2.SEQUENCE_END_CANCELLED,
    FinishReason.EXPIRED: replica_pb2.SEQUENCE_END_EXPIRED,
    FinishReason.SHED: replica_pb2.SEQUENCE_END_SHED,
}


class _Connection:
    """A gateway. `keys` are the engine's keys of its sequences, by the gateway's own."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.keys: dict[int, int] = {}


class ReplicaServer(replica_pb2_grpc.ReplicaLinkServicer):
    """Serves `phalanx.v1.ReplicaLink` for one engine, to gateways that show `secret`. `traces` gets the spans of
    sequences whose requests are traced.

    Hand `on_outputs` to `Engine.run`; everything else runs on the event loop that `start` was called on.
    """

    def __init__(self, engine: Engine, secret: str, tls: PeerTls | None = None, traces: Traces | None = None) -> None:
        self._engine = engine
        self._traces = traces
        if traces is not None:
            engine.follower = Follower(self._on_end)
        self._tls = tls
        self._check = SecretCheck(lambda: [secret], "gateways learn it from the coordinator's registry")
        # By the engine's key: whose it is, the key there, and the request's name.
        self._owners: dict[int, tuple[_Connection, int, str]] = {}
        self._last_key = 0
        self._connections: set[_Connection] = set()
        self._registry = ""
        self._beats: asyncio.Task[None] | None = None
        self._server: grpc.aio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, host: str, port: int = 0) -> int:
        """Listens on host:port; returns the port.

        Raises:
            SecurityError: the certificates cannot be used.
            RuntimeError: the address cannot be bound.
        """
        self._loop = asyncio.get_running_loop()
        self._server = grpc.aio.server(interceptors=[self._check], options=SERVER_OPTIONS)
        replica_pb2_grpc.add_ReplicaLinkServicer_to_server(self, self._server)
        bound = bind(self._server, f"{host}:{port}", self._tls)
        await self._server.start()
        self._beats = asyncio.create_task(self._beat())
        return bound

    async def stop(self, grace: float | None = None) -> None:
        if self._beats is not None:
            self._beats.cancel()
        if self._server is not None:
            await self._server.stop(grace)

    def on_outputs(self, outputs: list[Output]) -> None:
        """Called by the engine's thread, with the news of a step or of several."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, outputs)

    def _on_end(self, life: Followed) -> None:
        """Called by the engine's thread, which has no time for spans."""
        assert self._loop is not None
        assert self._traces is not None
        self._loop.call_soon_threadsafe(write_spans, self._traces.tracer, life)

    def announce(self, registry: str) -> None:
        """Tells gateways that the coordinator's registry is at `registry` (host:port) now. Called by any thread."""
        assert self._loop is not None
        self._registry = registry
        self._loop.call_soon_threadsafe(self._tell_all)

    async def Attach(
        self, request_iterator: AsyncIterator[replica_pb2.AttachRequest], context: Context
    ) -> AsyncIterator[replica_pb2.AttachResponse]:
        connection = _Connection()
        reader = asyncio.create_task(self._read(connection, request_iterator))
        self._connections.add(connection)
        peer = context.peer()  # once the call is gone, gRPC would look for that in memory it has given back
        log.info("a gateway connected", extra={"peer": peer})
        try:
            yield self._message()
            while (news := await connection.outbox.get()) is not None:
                yield self._message(news)
        finally:
            reader.cancel()
            self._connections.discard(connection)
            log.info("a gateway left", extra={"peer": peer, "sequences": len(connection.keys)})
            for key in connection.keys.values():
                del self._owners[key]
                self._engine.cancel(key)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            self._tell_all()

    def _tell_all(self) -> None:
        for connection in self._connections:
            connection.outbox.wake()

    def _message(self, news: Iterable[replica_pb2.SequenceNews] = ()) -> replica_pb2.AttachResponse:
        return replica_pb2.AttachResponse(news=news, load=self._load(), registry=self._registry)

    async def _read(self, connection: _Connection, requests: AsyncIterator[replica_pb2.AttachRequest]) -> None:
        try:
            async for request in requests:
                self._obey(connection, request)
        finally:
            connection.outbox.close()

    def _obey(self, connection: _Connection, request: replica_pb2.AttachRequest) -> None:
        command = request.WhichOneof("command")
        if command == "submit":
            self._submit(connection, request.submit)
        elif command == "cancel" and (key := connection.keys.get(request.cancel.key)) is not None:
            self._engine.cancel(key)
        elif command == "pause" and (key := connection.keys.get(request.pause.key)) is not None:
            self._engine.park(key)
        elif command == "unpause" and (key := connection.keys.get(request.unpause.key)) is not None:
            self._engine.unpark(key)

    def _submit(self, connection: _Connection, submit: replica_pb2.Submit) -> None:
        if submit.key in connection.keys:
            # Whose news are whose, nobody could tell any more.
            connection.outbox.close()
            return
        self._last_key += 1
        key = self._last_key
        try:
            self._engine.submit(
                Request(
                    key,
                    tuple(submit.token_ids),
                    submit.prompt_len,
                    sampling_params(submit.sampling),
                    submit.priority,
                    submit.tenant,
                    submit.weight or 1.0,
                    monotonic() + submit.timeout_ms / 1000 if submit.timeout_ms else None,
                    submit.traceparent,
                )
            )
        except EngineFull as error:
            self._reject(connection, submit, replica_pb2.SEQUENCE_END_QUEUE_FULL, error)
        except EngineStopped:
            connection.outbox.close()  # the end of the stream sends its sequences elsewhere
        except ValueError as error:
            self._reject(connection, submit, replica_pb2.SEQUENCE_END_REJECTED, error)
        else:
            self._owners[key] = connection, submit.key, submit.request_id
            connection.keys[submit.key] = key

    def _reject(
        self, connection: _Connection, submit: replica_pb2.Submit, end: replica_pb2.SequenceEnd, error: Exception
    ) -> None:
        reason = replica_pb2.SequenceEnd.Name(end).removeprefix("SEQUENCE_END_").lower()
        log.debug("sequence refused", extra={"request_id": submit.request_id, "reason": reason})
        connection.outbox.put(replica_pb2.SequenceNews(key=submit.key, end=end, detail=str(error)))

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            owner = self._owners.get(output.key)
            if owner is None:
                continue  # its gateway has gone
            connection, key, request_id = owner
            connection.outbox.put(_news(key, output))
            if output.finish_reason is not None:
                log.debug("sequence ended", extra={"request_id": request_id, "reason": output.finish_reason.value})
                del self._owners[output.key], connection.keys[key]

    def _load(self) -> replica_pb2.ReplicaLoad:
        load = self._engine.load()
        return replica_pb2.ReplicaLoad(
            running=load.running,
            waiting=load.waiting,
            parked=load.parked,
            free_blocks=load.free_blocks,
            total_blocks=load.total_blocks,
            steps=load.steps,
            generated_tokens=load.generated_tokens,
            cached_blocks=load.cached_blocks,
            prompt_tokens=load.prompt_tokens,
            cached_prompt_tokens=load.cached_prompt_tokens,
        )


def sampling_params(message: inference_pb2.Sampling) -> SamplingParams:
    """The parameters that a complete message states."""
    return SamplingParams(
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        seed=message.seed,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
    )


def _news(key: int, output: Output) -> replica_pb2.SequenceNews:
    return replica_pb2.SequenceNews(
        key=key,
        first_token_index=output.first_index,
        token_ids=output.token_ids,
        logprobs=[
            inference_pb2.TokenLogprob(
                logprob=logprob.logprob,
                top=[inference_pb2.Alternative(token_id=token, logprob=value) for token, value in logprob.top],
            )
            for logprob in output.logprobs
        ],
        end=replica_pb2.SEQUENCE_END_UNSPECIFIED if output.finish_reason is None else _ENDS[output.finish_reason],
        cached_tokens=output.cached_tokens,
    )
