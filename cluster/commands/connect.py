"""How the commands that talk to a gateway find it, and what they show it: options of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phalanx import Client, Tls

AddressOption = Annotated[
    str,
    typer.Option(
        envvar="PHALANX_ADDRESS", help="Of a gateway, as HOST:PORT; several, separated by commas, take turns."
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(envvar="PHALANX_TOKEN_FILE", exists=True, dir_okay=False, help="A file with the token to show."),
]
CaOption = Annotated[
    Path | None,
    typer.Option(envvar="PHALANX_CA", help="TLS: who may vouch for the gateway's certificate, as a PEM file."),
]
CertificateOption = Annotated[
    Path | None, typer.Option(envvar="PHALANX_CERTIFICATE", help="mTLS: this client's certificate, as a PEM file.")
]
KeyOption = Annotated[Path | None, typer.Option(envvar="PHALANX_KEY", help="mTLS: the key of the certificate.")]
DEFAULT_ADDRESS = "127.0.0.1:50051"


def connect(
    address: str,
    timeout: float | None = None,
    token_file: Path | None = None,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> Client:
    """A client of the gateways at `address`; with TLS if `ca` or `certificate` is given.

    Raises:
        phalanx.InvalidConnection: an address is not HOST:PORT, or the token or the certificates cannot be used.
    """
    token = None if token_file is None else token_file.read_text(encoding="utf-8").strip()
    tls = None if ca is None and certificate is None else Tls(ca, certificate, key)
    return Client(address, timeout, token=token, tls=tls)
