"""`phalanx serve`: a deployment from its start to its last process, with a gateway beside it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any

import ray

from cluster.drafting import draft_of, resolve_draft
from cluster.gateway.config import GatewayConfig
from cluster.gateway.server import Gateway
from cluster.lifecycle.coordinator import Opened
from cluster.lifecycle.ray_cluster import Say, ask, create_coordinator, end_coordinator, join_or_start
from cluster.models import resolve_model
from cluster.security.public_port import PublicPort
from cluster.spec import DeploymentSpec
from cluster.text import TokenizerMissing, load_tokenizer
from partitioning.checkpoint import open_checkpoint
from phalanx.v1 import registry_pb2


def checked(spec: DeploymentSpec) -> DeploymentSpec:
    """The spec with the paths of its models, once they are known to be readable: before anything is started.

    Raises:
        ModelError, CheckpointError, TokenizerError, DraftError: what is wrong with them.
    """
    path = resolve_model(spec.model).resolve()
    with open_checkpoint(path) as checkpoint:
        model = checkpoint.spec
    with suppress(TokenizerMissing):  # the gateway says so
        load_tokenizer(path)
    draft = None if spec.draft_model is None else str(resolve_draft(spec.draft_model, path))
    draft_of(model, draft, spec.draft_layers)
    return spec.model_copy(update={"model": str(path), "draft_model": draft})


def check_port(spec: DeploymentSpec) -> None:
    """Raises SecurityError: the gateway's certificates or tokens cannot be used, or its address needs them."""
    PublicPort(spec.listen, spec.tls, spec.tokens, spec.insecure)


class Interrupted(Exception):
    """Stopped by a signal before it was ready."""


@asynccontextmanager
async def deployment(spec: DeploymentSpec, say: Say) -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """Serves `spec`, whose model is `checked`; yields the gateway's address, and a wait that returns at the first
    Ctrl-C or SIGTERM. At the end requests are drained, and everything that was started is ended.

    Raises:
        PlanError: it does not fit the cluster.
        DeployError: no Ray cluster, the name is taken, a replica cannot be built, or (from that wait) the
            coordinator died.
        GatewayError: the gateway's address cannot be listened on.
        Interrupted: by a signal, while it started.
    """
    check_port(spec)
    join_or_start((spec.tp or 1) * (spec.pp or 1) * (spec.replicas or 1), say)
    try:
        stop = _stop_signal()
        coordinator = create_coordinator(spec, detached=False)
        try:
            opened: Opened = await ask(coordinator.open.remote())
            say(f"planned; further gateways: {_further_gateways(spec, opened.registry)}")
            if opened.metrics:
                say(f"metrics of the coordinator and its replicas: http://{opened.metrics}/metrics")
            gateway = Gateway(
                GatewayConfig(
                    spec.listen,
                    opened.registry,
                    opened.secret,
                    spec.max_sequences,
                    spec.recovery_s,
                    spec.send_timeout_s,
                    tls=spec.tls,
                    tokens=spec.tokens,
                    insecure=spec.insecure,
                    internal_tls=spec.internal_tls,
                    metrics_address=spec.metrics_address,
                    traces=spec.traces,
                ),
                _Progress(say),
            )
            try:
                port = await gateway.start()
                if spec.metrics_address is not None:
                    host = spec.metrics_address.rpartition(":")[0]
                    say(f"metrics of this gateway: http://{host}:{gateway.metrics_port}/metrics")
                await _unless(stop, ask(coordinator.started.remote()))
                await _unless(stop, gateway.ready())
                yield f"{spec.listen.rpartition(':')[0]}:{port}", partial(_until_over, stop, coordinator)
                say("draining: requests may finish, new ones are not taken (Ctrl-C again ends them)")
                if left := await gateway.drain(spec.drain_s):
                    say(f"{left} requests had not finished after {spec.drain_s:g} s")
            finally:
                await gateway.stop()
        finally:
            await end_coordinator(coordinator)
    finally:
        ray.shutdown()


def _further_gateways(spec: DeploymentSpec, registry: str) -> str:
    command = f"phalanx gateway --registry {registry} --registry-secret"
    if spec.registry_secret is not None:
        return f"{command} {spec.registry_secret}"
    if os.environ.get("RAY_ADDRESS"):
        return f"{command} FILE (written by phalanx secret {spec.name} --file FILE)"
    # Nobody else joins a Ray cluster that this process has started.
    return f"{command} FILE (the same that this command was given: openssl rand -hex 32 makes one)"


def _stop_signal() -> asyncio.Event:
    """An event that the first Ctrl-C or SIGTERM sets; a second one ends the process as it usually would."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        event.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return event


async def _unless(stop: asyncio.Event, call: Awaitable[None]) -> None:
    task, stopped = asyncio.ensure_future(call), asyncio.ensure_future(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        raise Interrupted("stopped before it was ready")
    await task


async def _until_over(stop: asyncio.Event, coordinator: Any) -> None:
    with suppress(Interrupted):
        await _unless(stop, ask(coordinator.until_closed.remote()))


class _Progress:
    """Says what becomes of the replicas."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._started = monotonic()
        self._known: dict[int, str] = {}

    def __call__(self, news: registry_pb2.WatchResponse) -> None:
        for replica in news.replicas:
            what = f"replica {replica.id}, epoch {replica.epoch}: {replica.detail}"
            if replica.detail and self._known.get(replica.id) != what:
                self._known[replica.id] = what
                self._say(f"[{monotonic() - self._started:5.1f} s] {what}")
