"""Metrics over HTTP, for Prometheus to fetch."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server


class MetricsError(RuntimeError):
    """Metrics cannot be shown where they should be."""


class MetricsEndpoint:
    """Answers with what `metrics` has, in the clear, to everybody who reaches the address. Threads of its own do that:
    a request waits for no scrape."""

    def __init__(self, metrics: CollectorRegistry) -> None:
        self._metrics = metrics
        self._server: Any = None

    async def start(self, address: str) -> int:
        """Listens on host:port; returns the port. Raises MetricsError when it cannot."""
        host, _, port = address.rpartition(":")
        try:
            # That asks the resolver for the host's name.
            self._server, _ = await asyncio.to_thread(start_http_server, int(port), host.strip("[]"), self._metrics)
        except (OSError, OverflowError, ValueError) as error:
            raise MetricsError(f"cannot listen on {address} for metrics: {error}") from error
        return int(self._server.server_port)

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.shutdown)
            server.server_close()
