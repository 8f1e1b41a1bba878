"""TLS between the processes of a deployment: both ends show a certificate of the deployment's own authority."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import grpc
from pydantic import ConfigDict

from workers.security.reload import Reloaded
from workers.security.tls import ServerTls, read_authorities, read_pair, server_credentials

_CALLED = "phalanx"


@dataclass(frozen=True)
class PeerTls:
    """PEM files, at the same paths on every node: a certificate (with the chain up to its authority), its key, and the
    authorities that vouch for all processes of the deployment. `name` is a DNS name that every certificate has, as
    nobody knows beforehand at which addresses the processes will be."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    certificate: Path
    key: Path
    ca: Path
    name: str = _CALLED


def bind(server: grpc.aio.Server, address: str, tls: PeerTls | None) -> int:
    """Listens on `address` (host:port) for peers; returns the port.

    Raises:
        SecurityError: the certificates cannot be used.
        RuntimeError: the address cannot be had.
    """
    if tls is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, server_credentials(ServerTls(tls.certificate, tls.key, tls.ca)))


class Dialler:
    """Opens channels to peers, each with the certificates that are in the files then.

    Raises:
        SecurityError: the certificates cannot be used.
    """

    def __init__(self, tls: PeerTls | None) -> None:
        self._tls = tls
        self._credentials = None
        if tls is not None:
            self._credentials = Reloaded([tls.certificate, tls.key, tls.ca], lambda: _credentials(tls))

    def channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        if self._tls is None or self._credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        named = ("grpc.ssl_target_name_override", self._tls.name)
        return grpc.aio.secure_channel(address, self._credentials.current, options=[*options, named])


def _credentials(tls: PeerTls) -> grpc.ChannelCredentials:
    certificate, key, _ = read_pair(tls.certificate, tls.key)
    return grpc.ssl_channel_credentials(read_authorities(tls.ca), key, certificate)
