"""`phalanx secret`: what gateways show to a deployment's registry. Needs the Ray cluster."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands import say


def secret(
    name: Annotated[str, typer.Argument(help="Of the deployment.")] = "phalanx",
    file: Annotated[Path | None, typer.Option(help="Write it there, readable by you alone.")] = None,
) -> None:
    """Print what the registry of a running deployment lets gateways in by, or write it to a file.

    Whoever has it learns where replicas are and may send them sequences. Needs RAY_ADDRESS.
    """
    from cluster.lifecycle.detached import secret as of

    found = asyncio.run(of(name, say))
    if file is None:
        typer.echo(found)
        return
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(f"{found}\n")
    say(f"written to {file}")
