"""Follows the coordinator's registry of replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import grpc

from cluster.gateway.calls import CHANNEL_OPTIONS
from phalanx.cancellation import raise_if_cancelled
from phalanx.v1 import registry_pb2, registry_pb2_grpc

log = logging.getLogger(__name__)

_RETRY_S = 0.5


class RegistryWatch:
    """Hands every message of the coordinator to `take`. It is called at `addresses` (host:port) in turn, for as long as
    it takes; a coordinator that comes back elsewhere lets the replicas tell where (`moved`)."""

    def __init__(
        self,
        addresses: Sequence[str],
        gateway_id: str,
        take: Callable[[registry_pb2.WatchResponse], Awaitable[None]],
    ) -> None:
        self._addresses = list(addresses)
        self._gateway_id = gateway_id
        self._take = take
        self._away = False

    async def run(self) -> None:
        """Follows the registry for ever."""
        while True:
            address = self._addresses[0]
            try:
                async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
                    stub = registry_pb2_grpc.RegistryStub(channel)
                    async for message in stub.Watch(registry_pb2.WatchRequest(gateway_id=self._gateway_id)):
                        self._away = False
                        await self._take(message)
            except grpc.aio.AioRpcError as error:
                raise_if_cancelled()
                if not self._away:
                    log.warning("the coordinator at %s does not answer (%s); calling again", address, error.details())
                self._away = True
            if self._addresses[0] == address:
                self._addresses.append(self._addresses.pop(0))
            await asyncio.sleep(_RETRY_S)

    def moved(self, address: str) -> None:
        """The registry is said to be at `address` now."""
        if address in self._addresses:
            self._addresses.remove(address)
        self._addresses.insert(0, address)

    async def scale(self, replicas: int, timeout: float | None) -> int:
        """Asks for so many replicas; returns how many are ready within `timeout` seconds.

        Raises:
            grpc.aio.AioRpcError: there cannot be so many, or the coordinator does not answer.
        """
        async with grpc.aio.insecure_channel(self._addresses[0], options=CHANNEL_OPTIONS) as channel:
            request = registry_pb2.ScaleRequest(replicas=replicas)
            response = await registry_pb2_grpc.RegistryStub(channel).Scale(request, timeout=timeout)
            return int(response.ready)
