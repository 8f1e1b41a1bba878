"""`phalanx.v1.Registry`: tells gateways where the replicas are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc

from cluster.lifecycle.events import EventLog
from cluster.security.malformed import MalformedMessages
from phalanx.v1 import registry_pb2, registry_pb2_grpc
from workers.security.peers import PeerTls, bind
from workers.security.secret import SecretCheck

log = logging.getLogger(__name__)


class Registry(registry_pb2_grpc.RegistryServicer):
    """Holds the state of the deployment and sends every change to all who watch. Lives on one event loop.

    Callers show one of `secrets()`. `scale` changes the number of replicas and returns how many there are; it raises
    ValueError or RuntimeError with what is in the way. `vitals` tells how the ranks are.
    """

    def __init__(
        self,
        deployment: str,
        secrets: Callable[[], Sequence[str]],
        scale: Callable[[int], Awaitable[int]] | None = None,
        tls: PeerTls | None = None,
        vitals: Callable[[], Iterable[registry_pb2.RankVitals]] = tuple,
    ) -> None:
        remedy = (
            f"`phalanx secret {deployment}` prints it on the Ray cluster; give it to gateways with "
            "--registry-secret FILE or PHALANX_REGISTRY_SECRET"
        )
        self._check = SecretCheck(secrets, remedy)
        self._scale, self._tls, self._vitals = scale, tls, vitals
        self._events = EventLog()
        self._state = registry_pb2.WatchResponse(deployment=deployment)
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int = 0) -> int:
        """Listens on host:port; returns the port.

        Raises:
            SecurityError: the certificates cannot be used.
            RuntimeError: the address cannot be had.
        """
        self._server = grpc.aio.server(
            interceptors=[self._check, MalformedMessages()],
            options=[("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", 1000)],
        )
        registry_pb2_grpc.add_RegistryServicer_to_server(self, self._server)
        bound = bind(self._server, f"{host}:{port}", self._tls)
        await self._server.start()
        return bound

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    def set_model(self, plan_json: str, engine_json: str) -> None:
        """What is served: the plan and the engine's configuration, as JSON."""
        self._state.plan_json, self._state.engine_json = plan_json, engine_json
        self._notify()

    def set_replicas(self, replicas: Iterable[registry_pb2.Replica], link_secrets: Mapping[int, str]) -> None:
        """All replicas, ready or not, and what gateways show to them."""
        del self._state.replicas[:]
        self._state.replicas.extend(replicas)
        self._state.link_secrets.clear()
        self._state.link_secrets.update(link_secrets)
        self._events.follow(self._state.replicas)
        self._notify()

    def note(self, kind: registry_pb2.EventKind, detail: str) -> None:
        """Something that happened to the deployment, and cannot be told from its replicas."""
        self._events.note(kind, detail)
        self._notify()

    async def Watch(
        self, request: registry_pb2.WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[registry_pb2.WatchResponse]:
        log.info("a gateway follows the cluster", extra={"gateway": request.gateway_id})
        while True:
            changed = self._changed
            state = registry_pb2.WatchResponse()
            state.CopyFrom(self._state)
            state.events.extend(self._events.events)
            yield state
            await changed.wait()

    async def Scale(
        self, request: registry_pb2.ScaleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> registry_pb2.ScaleResponse:
        if self._scale is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this deployment has a fixed number of replicas")
        if not request.replicas:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "replicas is 0: phalanx stop ends a deployment")
        try:
            # A caller that goes away does not undo what it began.
            ready = await asyncio.shield(asyncio.ensure_future(self._scale(request.replicas)))
        except (ValueError, RuntimeError) as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return registry_pb2.ScaleResponse(ready=ready)

    async def Vitals(
        self, request: registry_pb2.VitalsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> registry_pb2.VitalsResponse:
        return registry_pb2.VitalsResponse(ranks=self._vitals())

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
