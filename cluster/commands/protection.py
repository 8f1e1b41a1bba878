"""Options of the commands that open a gateway's port: who may reach it, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.security import SecurityError
from cluster.security.tls import ServerTls

CertificateOption = Annotated[
    Path | None, typer.Option(help="TLS: the port's certificate, with its chain, as a PEM file.", show_default=False)
]
KeyOption = Annotated[Path | None, typer.Option(help="TLS: the key of the certificate.", show_default=False)]
ClientCaOption = Annotated[
    Path | None,
    typer.Option(help="mTLS: clients show a certificate that these vouch for.", show_default=False),
]
TokensOption = Annotated[
    Path | None, typer.Option(help="Clients show a token of this file (see phalanx token new).", show_default=False)
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Listen beyond this machine without TLS or tokens: the network is trusted.")
]


def server_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """The TLS that was asked for. Raises SecurityError: only some of it was."""
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise SecurityError("TLS needs both --certificate and --key")
    return ServerTls(certificate, key, client_ca)
