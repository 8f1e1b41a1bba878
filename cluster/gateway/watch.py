"""Follows the coordinator's registry of replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc

from cluster.gateway.calls import CHANNEL_OPTIONS, raise_if_cancelled
from phalanx.v1 import registry_pb2, registry_pb2_grpc

log = logging.getLogger(__name__)

_RETRY_S = 0.5


async def watch_registry(
    address: str, gateway_id: str, take: Callable[[registry_pb2.WatchResponse], Awaitable[None]]
) -> None:
    """Hands every message of the coordinator at `address` (host:port) to `take`, for ever. While the coordinator is
    away there is none, and it is called again until it answers."""
    away = False
    while True:
        try:
            async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
                stub = registry_pb2_grpc.RegistryStub(channel)
                async for message in stub.Watch(registry_pb2.WatchRequest(gateway_id=gateway_id)):
                    away = False
                    await take(message)
        except grpc.aio.AioRpcError as error:
            raise_if_cancelled()
            if not away:
                log.warning("the coordinator at %s does not answer (%s); calling again", address, error.details())
            away = True
        await asyncio.sleep(_RETRY_S)
