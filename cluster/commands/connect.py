"""How the commands that talk to a gateway find it."""

from __future__ import annotations

from typing import Annotated

import typer

from phalanx import Client

AddressOption = Annotated[
    str,
    typer.Option(
        envvar="PHALANX_ADDRESS", help="Of a gateway, as HOST:PORT; several, separated by commas, take turns."
    ),
]
DEFAULT_ADDRESS = "127.0.0.1:50051"


def connect(address: str, timeout: float | None = None) -> Client:
    """A client of the gateways at `address`.

    Raises:
        phalanx.InvalidConnection: it is not HOST:PORT, or several such.
    """
    return Client(address, timeout)
