"""Follows the coordinator's registry of replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import grpc

from cluster.gateway.calls import CHANNEL_OPTIONS
from cluster.security.registry_secret import ShownSecret
from phalanx.cancellation import raise_if_cancelled
from phalanx.v1 import registry_pb2, registry_pb2_grpc
from workers.security.peers import Dialler
from workers.security.secret import showing

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_VITALS_S = 1.0


class RegistryWatch:
    """Hands every message of the coordinator to `take`. It is called at `addresses` (host:port) in turn, for as long as
    it takes, and shown `secret`; a coordinator that comes back elsewhere lets the replicas tell where (`moved`)."""

    def __init__(
        self,
        addresses: Sequence[str],
        secret: ShownSecret,
        dialler: Dialler,
        gateway_id: str,
        take: Callable[[registry_pb2.WatchResponse], Awaitable[None]],
    ) -> None:
        self._addresses = list(addresses)
        self._secret, self._dialler = secret, dialler
        self._gateway_id = gateway_id
        self._take = take
        self._complaint = ""

    async def run(self) -> None:
        """Follows the registry for ever."""
        while True:
            address = self._addresses[0]
            try:
                async with self._dialler.channel(address, CHANNEL_OPTIONS) as channel:
                    request = registry_pb2.WatchRequest(gateway_id=self._gateway_id)
                    shown = showing(self._secret.current)
                    async for message in registry_pb2_grpc.RegistryStub(channel).Watch(request, metadata=shown):
                        if self._complaint:
                            log.info("the coordinator answers again", extra={"registry": address})
                            self._complaint = ""
                        await self._take(message)
            except grpc.aio.AioRpcError as error:
                raise_if_cancelled()
                self._complain(address, error)
            if self._addresses[0] == address:
                self._addresses.append(self._addresses.pop(0))
            await asyncio.sleep(_RETRY_S)

    def _complain(self, address: str, error: grpc.aio.AioRpcError) -> None:
        """Says once that the coordinator is away, and once that it refuses this gateway."""
        refused = error.code() is grpc.StatusCode.UNAUTHENTICATED
        complaint = f"the coordinator {'refuses this gateway' if refused else 'does not answer'}"
        if not self._complaint or (refused and self._complaint != complaint):
            log.warning(complaint, extra={"registry": address, "error": error.details()})
            self._complaint = complaint

    def moved(self, address: str) -> None:
        """The registry is said to be at `address` now."""
        if address in self._addresses:
            self._addresses.remove(address)
        self._addresses.insert(0, address)

    async def vitals(self) -> list[registry_pb2.RankVitals]:
        """How the ranks are; nothing while the coordinator does not answer."""
        async with self._dialler.channel(self._addresses[0], CHANNEL_OPTIONS) as channel:
            stub, shown = registry_pb2_grpc.RegistryStub(channel), showing(self._secret.current)
            try:
                response = await stub.Vitals(registry_pb2.VitalsRequest(), metadata=shown, timeout=_VITALS_S)
            except grpc.aio.AioRpcError:
                raise_if_cancelled()
                return []
            return list(response.ranks)

    async def scale(self, replicas: int, timeout: float | None) -> int:
        """Asks for so many replicas; returns how many are ready within `timeout` seconds.

        Raises:
            grpc.aio.AioRpcError: there cannot be so many, or the coordinator does not answer.
        """
        async with self._dialler.channel(self._addresses[0], CHANNEL_OPTIONS) as channel:
            request = registry_pb2.ScaleRequest(replicas=replicas)
            stub = registry_pb2_grpc.RegistryStub(channel)
            response = await stub.Scale(request, metadata=showing(self._secret.current), timeout=timeout)
            return int(response.ready)
