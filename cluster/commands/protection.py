"""Options of the commands that open a gateway's port: who may reach it, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.security import SecurityError
from cluster.security.registry_secret import given_secrets
from workers.security.peers import PeerTls
from workers.security.tls import ServerTls

REGISTRY_SECRET_HELP = "what gateways show to the coordinator's registry"
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

RegistrySecretOption = Annotated[
    Path | None,
    typer.Option(
        envvar="PHALANX_REGISTRY_SECRET_FILE",
        help="A file with what the coordinator's registry asks for (see phalanx secret), or PHALANX_REGISTRY_SECRET.",
        show_default=False,
    ),
]
InternalCertificateOption = Annotated[
    Path | None, typer.Option(help="TLS within the cluster: this gateway's certificate, as a PEM file.")
]
InternalKeyOption = Annotated[Path | None, typer.Option(help="TLS within the cluster: the key of that certificate.")]
InternalCaOption = Annotated[
    Path | None, typer.Option(help="TLS within the cluster: who vouches for its processes, as a PEM file.")
]
InternalNameOption = Annotated[str, typer.Option(help="TLS within the cluster: the name that its certificates have.")]


def shown_secret(file: Path | None) -> str | Path:
    """What a gateway shows the registry: a file, or what the environment says. Raises SecurityError: there is none."""
    if file is not None:
        return file
    given = given_secrets(None)
    if not given:
        raise SecurityError(
            "the registry asks gateways for the deployment's secret: `phalanx secret NAME --file FILE` writes it, "
            "where RAY_ADDRESS reaches the Ray cluster; give it with --registry-secret FILE or PHALANX_REGISTRY_SECRET"
        )
    return given[0]


def peer_tls(certificate: Path | None, key: Path | None, ca: Path | None, name: str) -> PeerTls | None:
    """The TLS within the cluster that was asked for. Raises SecurityError: only some of it was."""
    if certificate is None and key is None and ca is None:
        return None
    if certificate is None or key is None or ca is None:
        raise SecurityError("TLS within the cluster needs --internal-certificate, --internal-key and --internal-ca")
    return PeerTls(certificate, key, ca, name)


def server_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """The TLS that was asked for. Raises SecurityError: only some of it was."""
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise SecurityError("TLS needs both --certificate and --key")
    return ServerTls(certificate, key, client_ca)
