"""What Kubernetes asks a gateway: is it alive, can it answer."""

from __future__ import annotations

import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.gateway.server import Gateway, GatewayConfig, GatewayError
from cluster.lifecycle.registry import Registry
from phalanx.v1 import inference_pb2, inference_pb2_grpc
from tests.served import SECRET

_HOST = "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


async def test_a_gateway_without_replicas_is_alive_but_not_ready_and_answers_nothing_else_to_probes() -> None:
    registry = Registry("test", lambda: [SECRET])
    probes = f"{_HOST}:{_free_port()}"
    address = f"{_HOST}:{await registry.start(_HOST)}"
    gateway = Gateway(GatewayConfig(f"{_HOST}:0", address, SECRET, probe_listen=probes))
    try:
        await gateway.start()
        async with grpc.aio.insecure_channel(probes) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            alive = await check(health_pb2.HealthCheckRequest(service="liveness"), timeout=10)
            ready = await check(health_pb2.HealthCheckRequest(service="phalanx.v1.Inference"), timeout=10)
            assert alive.status == health_pb2.HealthCheckResponse.SERVING
            assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await inference_pb2_grpc.InferenceStub(channel).GetModel(inference_pb2.GetModelRequest(), timeout=10)
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    finally:
        await gateway.stop()
        await registry.stop()


async def test_a_taken_port_for_probes_is_named() -> None:
    with socket.socket() as taken:
        taken.bind((_HOST, 0))
        taken.listen()
        address = f"{_HOST}:{taken.getsockname()[1]}"
        gateway = Gateway(GatewayConfig(f"{_HOST}:0", f"{_HOST}:1", SECRET, probe_listen=address))
        try:
            with pytest.raises(GatewayError, match=f"{address} for probes; choose another with --probe-listen"):
                await gateway.start()
        finally:
            await gateway.stop()
