"""What the blocking client and the one for asyncio have in common: all that waits for nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from phalanx.connection import DEFAULT_ADDRESS, Connection, Gateway, InvalidConnection, Tls
from phalanx.resumption import Stream
from phalanx.route import Rotation, Route
from phalanx.v1 import admin_pb2


class BaseClient:
    """See `phalanx.Client`."""

    def __init__(
        self,
        addresses: str | Sequence[str] = DEFAULT_ADDRESS,
        timeout: float | None = None,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        insecure_token: bool = False,
        reconnect_s: float = 60.0,
    ) -> None:
        connection = Connection(addresses, token, tls, insecure_token)
        self._addresses = connection.addresses
        self._metadata = connection.metadata
        self._gateways = self._connect(connection)
        self._rotation = Rotation(connection.addresses)
        self._timeout = timeout
        self._reconnect_s = reconnect_s
        self._closed = threading.Event()

    def _connect(self, connection: Connection) -> list[Gateway]:
        raise NotImplementedError

    def _route(self) -> Route:
        return Route(self._rotation, self._timeout, self._reconnect_s)

    def _open(self, stream: Stream, route: Route) -> Any:
        """The call that asks for the rest of a stream."""
        method = getattr(self._gateways[route.place].inference, stream.method)
        return method(stream.request(), timeout=route.timeout, metadata=(*self._metadata, *stream.metadata))

    def _drain_request(self, seconds: int) -> admin_pb2.DrainRequest:
        if len(self._addresses) > 1:
            raise InvalidConnection("which gateway is to drain? Make a client of its address alone")
        return admin_pb2.DrainRequest(seconds=seconds)
