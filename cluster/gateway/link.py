"""A gateway's connection to one epoch of one replica."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import grpc

from cluster.gateway.calls import CHANNEL_OPTIONS
from cluster.router import Burden
from phalanx.cancellation import raise_if_cancelled
from phalanx.v1 import registry_pb2, replica_pb2, replica_pb2_grpc
from workers.security.peers import Dialler
from workers.security.secret import showing

log = logging.getLogger(__name__)

_RETRY_S = 0.2
_LOOKS = 5  # before a replica counts as silent


class LinkLost(Exception):
    """The connection ended before the sequence did."""


@dataclass(frozen=True)
class Patience:
    """How many seconds a replica may be silent (it speaks every second), and how many a step may take."""

    silent_s: float = 5.0
    still_s: float = 20.0


@dataclass
class _Sequence:
    deliver: Callable[[replica_pb2.SequenceNews | LinkLost], None]
    tokens: int
    paused: bool = False


class Link:
    """Keeps one `ReplicaLink.Attach` stream open, for which it shows the epoch's `secret`, and hands every sequence its
    news. Lives on one event loop.

    A replica from which nothing is heard for `patience.silent_s`, or whose steps do not move for `patience.still_s`
    while it has sequences of this gateway, counts as lost until it speaks again. `on_registry` is told where a replica
    says that the registry is.
    """

    def __init__(
        self,
        replica: registry_pb2.Replica,
        secret: str,
        dialler: Dialler,
        patience: Patience,
        on_change: Callable[[], None],
        on_registry: Callable[[str], None],
    ) -> None:
        self._secret, self._dialler = secret, dialler
        self._patience = patience
        self._on_registry = on_registry
        self._registry = ""
        self._moved = 0.0  # when the steps last did
        self.replica = replica
        self.load = replica_pb2.ReplicaLoad()
        self.connected = False
        self._on_change = on_change
        self._sequences: dict[int, _Sequence] = {}
        self._tokens = 0
        self._paused = 0
        self._others = 0
        self._last_key = 0
        self._outbox: asyncio.Queue[replica_pb2.AttachRequest] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(), name=f"replica {replica.id} epoch {replica.epoch}")

    @property
    def _own(self) -> dict[str, object]:
        """What lines in the log name it by."""
        return {"replica": self.replica.id, "epoch": self.replica.epoch}

    @property
    def burden(self) -> Burden:
        return Burden(len(self._sequences), self._tokens, self._others)

    def submit(self, submit: replica_pb2.Submit, deliver: Callable[[replica_pb2.SequenceNews | LinkLost], None]) -> int:
        """Starts a sequence and returns its key, which replaces the one in `submit`. `deliver` gets its news, the last
        of which has an `end` or is LinkLost."""
        self._last_key += 1
        submit.key = self._last_key
        tokens = submit.prompt_len + submit.sampling.max_tokens
        self._sequences[submit.key] = _Sequence(deliver, tokens)
        self._tokens += tokens
        self._outbox.put_nowait(replica_pb2.AttachRequest(submit=submit))
        return submit.key

    def cancel(self, key: int) -> None:
        """Ends a sequence, whose news are delivered no more."""
        if self._forget(key) is not None:
            self._outbox.put_nowait(replica_pb2.AttachRequest(cancel=replica_pb2.Cancel(key=key)))

    def pause(self, key: int) -> None:
        """Lets a sequence rest; tokens that are on their way still come."""
        self._sequences[key].paused = True
        self._paused += 1
        self._outbox.put_nowait(replica_pb2.AttachRequest(pause=replica_pb2.Pause(key=key)))

    def unpause(self, key: int) -> None:
        """Lets a paused sequence go on."""
        sequence = self._sequences.get(key)
        if sequence is not None:  # otherwise its end was on its way
            sequence.paused = False
            self._paused -= 1
            self._moved = monotonic()
            self._outbox.put_nowait(replica_pb2.AttachRequest(unpause=replica_pb2.Unpause(key=key)))

    async def close(self) -> None:
        """Ends the connection; sequences that are not finished get LinkLost."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        """Attaches, and attaches again whenever the stream ends: whether the replica is gone, the registry says."""
        while True:
            why: str | None = None
            try:
                await self._attach()
                why = "it has ended the connection"
            except grpc.aio.AioRpcError as error:
                raise_if_cancelled()
                why = error.details() or error.code().name
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    log.warning("a replica refuses this gateway", extra={**self._own, "error": why})
            except TimeoutError:
                why = self._complaint()
            finally:
                self._lose(why)
            await asyncio.sleep(_RETRY_S)

    async def _attach(self) -> None:
        async with self._dialler.channel(self.replica.address, CHANNEL_OPTIONS) as channel:
            call = replica_pb2_grpc.ReplicaLinkStub(channel).Attach(metadata=showing(self._secret))
            writer = asyncio.create_task(self._write(call))
            try:
                self._moved = monotonic()
                while (message := await self._hear(call)) is not grpc.aio.EOF:
                    self._take(message)
            finally:
                call.cancel()
                writer.cancel()
                await asyncio.wait([writer])

    async def _hear(self, call: Any) -> Any:
        """The next message. In a flood this process may be seconds late: what came meanwhile, a later look finds."""
        read = asyncio.ensure_future(call.read())
        try:
            for _ in range(_LOOKS):
                await asyncio.wait([read], timeout=self._patience.silent_s / _LOOKS)
                if read.done():
                    return read.result()
            raise TimeoutError
        finally:
            read.cancel()

    async def _write(self, call: Any) -> None:
        # A write fails when the stream has ended, and then so does the read.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await call.write(await self._outbox.get())

    def _take(self, message: replica_pb2.AttachResponse) -> None:
        if not self.connected:
            self.connected = True
            log.info("replica connected", extra={**self._own, "address": self.replica.address})
            self._on_change()
        for news in message.news:
            self._deliver(news)
        if message.registry != self._registry:
            self._registry = message.registry
            self._on_registry(message.registry)
        now = monotonic()
        if message.load.steps != self.load.steps or self._paused == len(self._sequences):
            self._moved = now
        elif now - self._moved > self._patience.still_s:
            raise TimeoutError
        self.load = message.load
        self._others = max(0, message.load.running + message.load.waiting - len(self._sequences))

    def _deliver(self, news: replica_pb2.SequenceNews) -> None:
        ended = news.end != replica_pb2.SEQUENCE_END_UNSPECIFIED
        sequence = self._forget(news.key) if ended else self._sequences.get(news.key)
        if sequence is not None:  # otherwise it was cancelled meanwhile
            sequence.deliver(news)

    def _complaint(self) -> str:
        still_s = monotonic() - self._moved
        if still_s > self._patience.still_s:
            return f"no step has ended for {still_s:.1f} s"
        return f"nothing was heard for {self._patience.silent_s:g} s"

    def _forget(self, key: int) -> _Sequence | None:
        sequence = self._sequences.pop(key, None)
        if sequence is not None:
            self._tokens -= sequence.tokens
            self._paused -= sequence.paused
        return sequence

    def _lose(self, why: str | None) -> None:
        """Why the connection ended; None where this gateway did it."""
        if self.connected and why is None:
            log.info("replica left", extra=self._own)
        elif self.connected:
            log.warning("replica lost", extra={**self._own, "sequences": len(self._sequences), "error": why})
        was_connected, self.connected = self.connected, False
        self._outbox = asyncio.Queue()
        self._tokens = self._others = self._paused = 0
        sequences, self._sequences = self._sequences, {}
        for sequence in sequences.values():
            sequence.deliver(LinkLost(f"the connection to replica {self.replica.id} ended"))
        if was_connected:
            self._on_change()
