"""A gateway: the public gRPC services in front of a cluster's replicas. Needs no Ray in its process."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.gateway.admin import AdminService
from cluster.gateway.admission import Admission
from cluster.gateway.config import GatewayConfig
from cluster.gateway.fleet import Fleet
from cluster.gateway.kept import Kept
from cluster.gateway.link import Patience
from cluster.gateway.model import ServedModel, tokenizer_of
from cluster.gateway.probes import ProbeServer
from cluster.gateway.send_timeout import SendTimeout
from cluster.gateway.service import InferenceService
from cluster.gateway.watch import RegistryWatch
from cluster.metrics.endpoint import MetricsEndpoint, MetricsError
from cluster.metrics.gateway import GatewayMetrics
from cluster.security.malformed import MalformedMessages
from cluster.security.public_port import PublicPort
from cluster.security.registry_secret import ShownSecret
from partitioning.plan_json import plan_from_json
from phalanx.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc, registry_pb2
from workers.observation.traces import Traces
from workers.request import EngineConfig
from workers.security.peers import Dialler

log = logging.getLogger(__name__)

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
_LIVENESS = "liveness"  # served as long as the process is: a restart does not bring back a replica
_MOST_PENDING, _MOST_PENDING_S = 1 << 16, 120  # calls that have come and not begun, and seconds
MOST_BYTES = 16 << 20  # of a request: the token ids of a context of millions
_GRACE_S = 5.0  # for answers that are on their way when the server stops


class GatewayError(RuntimeError):
    """A gateway that cannot start. The message names the remedy."""


class Gateway:
    """`start` it, `stop` it; `on_news` is called with every message of the coordinator.

    Raises:
        SecurityError: certificates, tokens or the registry's secret cannot be used, or the address needs them.
        TracesUnavailable: they are asked for, and their libraries are missing.
    """

    def __init__(
        self, config: GatewayConfig, on_news: Callable[[registry_pb2.WatchResponse], None] = lambda news: None
    ) -> None:
        self._config = config
        self._port = PublicPort(config.listen, config.tls, config.tokens, config.insecure)
        self._on_news = on_news
        self._metrics = GatewayMetrics()
        self._metrics_endpoint = MetricsEndpoint(self._metrics.registry)
        self._admission = Admission(config.max_sequences)
        dialler = Dialler(config.internal_tls)
        own = f"gateway-{uuid.uuid4().hex[:8]}"
        secret = ShownSecret(config.registry_secret)
        self._watch = RegistryWatch(config.registry.split(","), secret, dialler, own, self._take)
        self._fleet = Fleet(self._update_health, self._watch.moved, dialler)
        self._kept = Kept(self._metrics.objective)
        self._traces = None if config.traces is None else Traces(config.traces, "phalanx-gateway", own)
        tracer = None if self._traces is None else self._traces.tracer
        self._inference = InferenceService(
            self._fleet, self._admission, self._kept, self._metrics, config.recovery_s, tracer
        )
        self._admin = AdminService(self._fleet, self._admission, self._kept, self.drain, self._watch)
        self._health = health.aio.HealthServicer()
        self._probes = ProbeServer(self._health)
        self.metrics_port = 0
        self._ready = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = grpc.aio.server(
            interceptors=[*self._port.interceptors, MalformedMessages(), SendTimeout(config.send_timeout_s)],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MOST_BYTES),
                # A client's machine that vanished without a word is noticed, and its streams end.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                # gRPC itself cancels calls of a flood, at random from the first of these and all from the second, and
                # those that it could not hand over for so long: admission gives better answers.
                ("grpc.server.max_pending_requests", _MOST_PENDING),
                ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
                ("grpc.server_max_unrequested_time_in_server", _MOST_PENDING_S),
            ],
        )

    async def start(self) -> int:
        """Listens, and follows the registry; returns the port.

        Raises:
            GatewayError: the address cannot be listened on.
        """
        inference_pb2_grpc.add_InferenceServicer_to_server(self._inference, self._server)
        admin_pb2_grpc.add_AdminServicer_to_server(self._admin, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (_INFERENCE, _ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._health.set(_LIVENESS, _SERVING)
        await self._set_health(False)
        try:
            port = self._port.bind(self._server)
        except RuntimeError as error:
            raise GatewayError(
                f"cannot listen on {self._config.listen}: the port is taken or the address is not this machine's; "
                "choose another with --listen HOST:PORT"
            ) from error
        await self._server.start()
        if self._config.probe_listen is not None:
            try:
                await self._probes.start(self._config.probe_listen)
            except RuntimeError as error:
                raise GatewayError(
                    f"cannot listen on {self._config.probe_listen} for probes; choose another with --probe-listen"
                ) from error
        if self._config.metrics_address is not None:
            try:
                self.metrics_port = await self._metrics_endpoint.start(self._config.metrics_address)
            except MetricsError as error:
                raise GatewayError(f"{error}; choose another with --metrics-address HOST:PORT") from error
        self._spawn(self._watch.run())
        return port

    async def ready(self) -> None:
        """Returns when a request can be answered."""
        await self._ready.wait()

    async def drain(self, seconds: float) -> int:
        """Takes no more requests and lets those there are finish; returns how many have not after `seconds`."""
        self._admission.draining = True
        self._update_health()
        log.info("draining", extra={"seconds": seconds, "requests": self._admission.requests})
        left = await self._admission.drain(seconds)
        log.info("drained", extra={"unfinished": left})
        return left

    async def stop(self) -> None:
        """Ends everything at once; drain before."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._fleet.close()
        await self._server.stop(_GRACE_S)
        await self._probes.stop()
        await self._metrics_endpoint.stop()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
        log.info("stopped")

    async def _take(self, news: registry_pb2.WatchResponse) -> None:
        if news.plan_json and news.plan_json != self._admin.news.plan_json:
            model = self._inference.model = await asyncio.to_thread(self._read_model, news)
            log.info("model known", extra={"model": model.plan.model.name, "deployment": news.deployment})
        self._admin.news = news
        self._fleet.update(news.replicas, news.link_secrets)
        self._on_news(news)

    def _read_model(self, news: registry_pb2.WatchResponse) -> ServedModel:
        plan, engine = plan_from_json(news.plan_json), EngineConfig.of(json.loads(news.engine_json))
        self._kept.objectives = engine.objectives
        self._fleet.patience = Patience(still_s=engine.collective_timeout_s)
        return ServedModel(
            plan,
            engine.max_model_len,
            engine.eos_token_ids,
            tokenizer_of(self._config.tokenizer or plan.model_path),
            plan.kv_blocks * plan.kv_block_size + engine.max_waiting_tokens,
        )

    def _update_health(self) -> None:
        if (model := self._inference.model) is not None:
            self._admission.room_for(len(self._fleet.usable), model.replica_tokens)
        self._metrics.replicas.set(len(self._fleet.usable))
        ready = bool(self._fleet.usable) and not self._admission.draining
        if ready:
            self._ready.set()
        else:
            self._ready.clear()
        self._spawn(self._set_health(ready))

    async def _set_health(self, ready: bool) -> None:
        status = _SERVING if ready else _NOT_SERVING
        for service in ("", _INFERENCE):
            await self._health.set(service, status)
        for replica, link in self._fleet.replicas:
            up = link is not None and link.connected and not self._admission.draining
            await self._health.set(f"replica-{replica.id}", _SERVING if up else _NOT_SERVING)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the gateway can no longer follow the cluster", exc_info=error)
