"""`phalanx gateway`: a further gateway for a running deployment. Needs no Ray."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated

import typer


def gateway(
    registry: Annotated[str, typer.Option(help="The coordinator's registry, as HOST:PORT (phalanx serve says it).")],
    listen: Annotated[str, typer.Option(help="Where to listen, as HOST:PORT.")] = "127.0.0.1:50052",
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder or GGUF file to take the tokenizer from, if the model is not here.")
    ] = None,
    max_sequences: Annotated[int, typer.Option(min=1, help="Sequences it takes on at once.")] = 1024,
    drain_s: Annotated[float, typer.Option(min=0, help="How long requests may take to finish at the end.")] = 30.0,
) -> None:
    """Run a further gateway, on this machine or another, until Ctrl-C or SIGTERM."""
    asyncio.run(_gateway(registry, listen, tokenizer, max_sequences, drain_s))


async def _gateway(registry: str, listen: str, tokenizer: str | None, max_sequences: int, drain_s: float) -> None:
    from cluster.gateway.server import Gateway, GatewayConfig

    server = Gateway(GatewayConfig(listen, registry, max_sequences, tokenizer=tokenizer))
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        port = await server.start()
        typer.echo(f"listening at {listen.rpartition(':')[0]}:{port}, following {registry}", err=True)
        await stop.wait()
        typer.echo("draining: requests may finish, new ones are not taken", err=True)
        await server.drain(drain_s)
    finally:
        await server.stop()
