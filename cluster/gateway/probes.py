"""The health service alone, on a port of its own: Kubernetes' probes speak neither TLS nor show a token."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2_grpc


class ProbeServer:
    """Answers probes with what `servicer` knows, in the clear."""

    def __init__(self, servicer: health.aio.HealthServicer) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)

    async def start(self, listen: str) -> int:
        """Listens on host:port; returns the port. Raises RuntimeError when it cannot."""
        port = self._server.add_insecure_port(listen)
        await self._server.start()
        return port

    async def stop(self) -> None:
        await self._server.stop(None)
