"""`phalanx scale` and `phalanx drain`: what a gateway can be asked to change."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.connect import (
    DEFAULT_ADDRESS,
    AddressOption,
    CaOption,
    CertificateOption,
    KeyOption,
    TokenFileOption,
    connect,
)


def scale(
    replicas: Annotated[int, typer.Option(min=1, help="How many copies of the model there shall be.")],
    address: AddressOption = DEFAULT_ADDRESS,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    wait_s: Annotated[float, typer.Option(min=1, help="How long to wait for them; the change goes on after.")] = 600.0,
) -> None:
    """Change the number of replicas while they serve.

    New ones are started; those too many finish their streams, or hand them to the others, and end.
    """
    with connect(address, wait_s, token_file, ca, certificate, key) as client:
        ready = client.scale(replicas)
    typer.echo(f"{ready} replicas are ready", err=True)


def drain(
    address: AddressOption = DEFAULT_ADDRESS,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    seconds: Annotated[int, typer.Option(min=1, help="How long requests may take to finish.")] = 30,
) -> None:
    """Let a gateway take no more requests, and wait for those it has: before it is stopped or moved."""
    with connect(address, seconds + 10.0, token_file, ca, certificate, key) as client:
        left = client.drain(seconds)
    typer.echo(f"{left} requests had not finished" if left else "every request has finished", err=True)
