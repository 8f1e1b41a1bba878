"""A gateway in front of real replicas whose ranks are threads of the test's process: all but Ray."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from cluster.gateway.server import Gateway, GatewayConfig
from cluster.lifecycle.registry import Registry
from partitioning.plan import Plan
from partitioning.plan_json import plan_to_json
from phalanx.v1 import registry_pb2
from tests.replicas import HOST, rank_threads
from workers.engine import Engine
from workers.observation.traces import Traces
from workers.request import EngineConfig, Output
from workers.security.peers import PeerTls
from workers.security.secret import new_secret
from workers.server import ReplicaServer

SECRET = new_secret()  # the registry's


@dataclass
class Served:
    """`engines` by replica; `lose` ends the network side of one and tells the gateways, as when its machine died. The
    `address` and the `gateway` are the first of several; `kill` ends one at once."""

    addresses: list[str]
    gateways: list[Gateway]
    registry: Registry
    registry_address: str
    link_secrets: dict[int, str] = field(default_factory=dict)
    replicas: dict[int, registry_pb2.Replica] = field(default_factory=dict)
    engines: dict[int, Engine] = field(default_factory=dict)
    servers: dict[int, ReplicaServer] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def gateway(self) -> Gateway:
        return self.gateways[0]

    async def kill(self, gateway: int) -> None:
        await self.gateways[gateway]._server.stop(None)

    async def lose(self, replica: int) -> None:
        await self.servers[replica].stop()
        self.replicas.pop(replica)
        self.registry.set_replicas(self.replicas.values(), self.link_secrets)


@asynccontextmanager
async def served(
    plan: Plan,
    config: EngineConfig,
    replicas: int = 1,
    gateways: int = 1,
    step_s: float = 0.0,
    internal_tls: PeerTls | None = None,
    traces: str | None = None,
    **options: object,
) -> AsyncIterator[Served]:
    """Serves `plan` with so many replicas and gateways; `options` are those of GatewayConfig. Steps take at least
    `step_s` seconds, so that streams last long enough for what is to happen to them."""
    async with AsyncExitStack() as stack:
        registry = Registry("test", lambda: [SECRET], tls=internal_tls)
        port = await registry.start(HOST)
        stack.push_async_callback(registry.stop)
        result = Served([], [], registry, f"{HOST}:{port}")
        for _ in range(gateways):
            fields = {"internal_tls": internal_tls, "traces": traces, "registry_secret": SECRET, **options}
            gateway = Gateway(GatewayConfig(f"{HOST}:0", result.registry_address, **fields))  # type: ignore[arg-type]
            result.addresses.append(f"{HOST}:{await gateway.start()}")
            result.gateways.append(gateway)
            stack.push_async_callback(gateway.stop)
        for number in range(replicas):
            await stack.enter_async_context(_replica(result, number, plan, config, step_s, internal_tls, traces))
        registry.set_model(plan_to_json(plan), json.dumps(dataclasses.asdict(config)))
        registry.set_replicas(result.replicas.values(), result.link_secrets)
        async with asyncio.timeout(30):
            for gateway in result.gateways:
                await gateway.ready()
                while len(gateway._fleet.usable) < replicas:
                    await asyncio.sleep(0.01)
        yield result


@asynccontextmanager
async def _replica(
    result: Served,
    number: int,
    plan: Plan,
    config: EngineConfig,
    step_s: float,
    tls: PeerTls | None,
    collector: str | None,
) -> AsyncIterator[None]:
    ranks = rank_threads(plan, config)
    engine = await asyncio.to_thread(ranks.__enter__)
    result.link_secrets[number] = new_secret()
    traces = None if collector is None else Traces(collector, "phalanx-replica", f"replica-{number}")
    server = ReplicaServer(engine, result.link_secrets[number], tls, traces)
    port = await server.start(HOST)

    def hand_over(outputs: list[Output]) -> None:
        server.on_outputs(outputs)
        time.sleep(step_s)

    run = asyncio.create_task(asyncio.to_thread(engine.run, hand_over))
    result.engines[number], result.servers[number] = engine, server
    result.replicas[number] = registry_pb2.Replica(
        id=number, epoch=1, address=f"{HOST}:{port}", state=registry_pb2.REPLICA_STATE_READY
    )
    try:
        yield
    finally:
        await server.stop()
        engine.stop()
        await run
        await asyncio.to_thread(ranks.__exit__, None, None, None)
        if traces is not None:
            traces.close()
