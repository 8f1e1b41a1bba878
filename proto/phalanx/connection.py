"""Where a client's gateways are, and how it proves who it is to them."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from phalanx.v1 import admin_pb2_grpc, inference_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"

Pem = str | os.PathLike[str] | bytes

_OPTIONS = [
    # A name with several records (a headless Kubernetes service) stands for several gateways: calls take turns.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.dns_min_time_between_resolutions_ms", 2000),
    # A machine that vanished without a word is noticed after twenty seconds.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class Gateway:
    """The services at one address, over a channel of grpc or of grpc.aio."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.inference = inference_pb2_grpc.InferenceStub(channel)
        self.admin = admin_pb2_grpc.AdminStub(channel)


class InvalidConnection(ValueError):
    """Addresses, a token or certificates that cannot be used; the message names the remedy."""


@dataclass(frozen=True)
class Tls:
    """How to encrypt: each is the path of a PEM file, or its content as bytes.

    `ca` has the certificates that may vouch for the gateway's; None means those that this machine trusts. `certificate`
    (with the chain up to the authority) and `key` are the client's own, for gateways that ask for them (mTLS).
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises InvalidConnection: a file cannot be read, or one of certificate and key is missing."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidConnection("a client certificate needs its key, and a key its certificate: give both")
        ca = ssl.get_default_verify_paths().cafile if self.ca is None else self.ca
        return grpc.ssl_channel_credentials(
            _read("ca", ca), _read("key", self.key), _read("certificate", self.certificate)
        )


class Connection:
    """The gateways at `addresses`, and the credentials that all of them are shown.

    A bearer token is as good as a password, so without TLS it is sent within this machine only, unless
    `insecure_token` says that the network may be trusted.

    Raises:
        InvalidConnection: there is no address, one is not HOST:PORT, or the credentials cannot be used.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        token: str | None = None,
        tls: Tls | None = None,
        insecure_token: bool = False,
    ) -> None:
        given = addresses.split(",") if isinstance(addresses, str) else addresses
        self.addresses = tuple(dict.fromkeys(address.strip() for address in given))
        for address in self.addresses:
            _check(address)
        if not self.addresses:
            raise InvalidConnection("there is no address: give at least one HOST:PORT")
        if token is not None and tls is None and not insecure_token:
            for address in self.addresses:
                if not _is_loopback(address):
                    raise InvalidConnection(
                        f"the token would be readable on its way to {address}: use TLS, or say insecure_token=True "
                        "where the network is trusted"
                    )
        if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
            raise InvalidConnection("the token has characters that a header cannot carry: it has to be printable ASCII")
        self.metadata = () if token is None else (("authorization", f"Bearer {token.strip()}"),)
        self._credentials = None if tls is None else tls.credentials()

    def gateways(self) -> list[Gateway]:
        return [Gateway(self._channel(address)) for address in self.addresses]

    def aio_gateways(self) -> list[Gateway]:
        return [Gateway(self._aio_channel(address)) for address in self.addresses]

    def _channel(self, address: str) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(address, options=_OPTIONS)
        return grpc.secure_channel(address, self._credentials, options=_OPTIONS)

    def _aio_channel(self, address: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=_OPTIONS)
        return grpc.aio.secure_channel(address, self._credentials, options=_OPTIONS)


def is_literal(address: str) -> bool:
    """Whether the host of an address is one IP address, and not a name that may stand for several."""
    try:
        ipaddress.ip_address(_host(address))
    except ValueError:
        return False
    return True


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _is_loopback(address: str) -> bool:
    host = _host(address)
    return host == "localhost" or (is_literal(address) and ipaddress.ip_address(host).is_loopback)


def _check(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidConnection(f"{address!r} is no address: give HOST:PORT, such as {DEFAULT_ADDRESS}")


def _read(name: str, pem: Pem | None) -> bytes | None:
    if pem is None or isinstance(pem, bytes):
        return pem
    try:
        return Path(pem).read_bytes()
    except OSError as error:
        raise InvalidConnection(f"{name}: {pem} cannot be read ({error.strerror})") from None
