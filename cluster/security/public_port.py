"""A gateway's port: where it listens, and what those who come have to show."""

from __future__ import annotations

from pathlib import Path

import grpc

from cluster.security.authentication import Authentication
from cluster.security.exposure import check_exposure
from cluster.security.tokens import TokenFile
from workers.security.tls import ServerTls, server_credentials


class PublicPort:
    """`listen` is host:port; `tokens` is a tokens file.

    Raises:
        SecurityError: certificates or tokens that cannot be used, or an address that needs them.
    """

    def __init__(self, listen: str, tls: ServerTls | None, tokens: Path | None, insecure: bool) -> None:
        certified = tls is not None and tls.client_ca is not None
        check_exposure(listen, tls is not None, tokens is not None or certified, insecure)
        self._listen = listen
        self._credentials = None if tls is None else server_credentials(tls)
        self.interceptors = [] if tokens is None else [Authentication(TokenFile(tokens))]

    def bind(self, server: grpc.aio.Server) -> int:
        """Listens; returns the port. Raises RuntimeError when the address cannot be had."""
        if self._credentials is None:
            return server.add_insecure_port(self._listen)
        return server.add_secure_port(self._listen, self._credentials)
