"""`phalanx gateway`: a further gateway for a running deployment. Needs no Ray."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated

import typer

from cluster.commands import say
from cluster.commands.observation import LogFormatOption, LogLevelOption, TracesOption
from cluster.commands.protection import (
    CertificateOption,
    ClientCaOption,
    InsecureOption,
    InternalCaOption,
    InternalCertificateOption,
    InternalKeyOption,
    InternalNameOption,
    KeyOption,
    RegistrySecretOption,
    TokensOption,
    peer_tls,
    server_tls,
    shown_secret,
)
from cluster.gateway.config import GatewayConfig
from workers.observation.log import LogConfig, set_up
from workers.security.peers import PeerTls


def gateway(
    registry: Annotated[str, typer.Option(help="The coordinator's registry, as HOST:PORT (phalanx serve says it).")],
    registry_secret: RegistrySecretOption = None,
    listen: Annotated[str, typer.Option(help="Where to listen, as HOST:PORT.")] = "127.0.0.1:50052",
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder or GGUF file to take the tokenizer from, if the model is not here.")
    ] = None,
    max_sequences: Annotated[int, typer.Option(min=1, help="Sequences it takes on at once.")] = 1024,
    recovery_s: Annotated[
        float, typer.Option(min=0, help="How long a stream whose replica is lost waits for another.")
    ] = 120.0,
    send_timeout_s: Annotated[
        float, typer.Option(min=0.001, help="How long a client may leave a stream unread until it is ended.")
    ] = 600.0,
    drain_s: Annotated[float, typer.Option(min=0, help="How long requests may take to finish at the end.")] = 30.0,
    probe_listen: Annotated[
        str | None, typer.Option(help="HOST:PORT for the health service alone, in the clear, for Kubernetes' probes.")
    ] = None,
    metrics_address: Annotated[
        str | None, typer.Option(help="HOST:PORT for Prometheus to fetch metrics from, in the clear. Default: nowhere.")
    ] = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    client_ca: ClientCaOption = None,
    tokens: TokensOption = None,
    insecure: InsecureOption = False,
    internal_certificate: InternalCertificateOption = None,
    internal_key: InternalKeyOption = None,
    internal_ca: InternalCaOption = None,
    internal_name: InternalNameOption = PeerTls.name,
    log_format: LogFormatOption = None,
    log_level: LogLevelOption = None,
    traces: TracesOption = None,
) -> None:
    """Run a further gateway, on this machine or another, until Ctrl-C or SIGTERM."""
    set_up(LogConfig(log_format or LogConfig.format, log_level or LogConfig.level), "gateway")
    config = GatewayConfig(
        listen,
        registry,
        shown_secret(registry_secret),
        max_sequences,
        recovery_s,
        send_timeout_s,
        tokenizer,
        probe_listen,
        server_tls(certificate, key, client_ca),
        tokens,
        insecure,
        peer_tls(internal_certificate, internal_key, internal_ca, internal_name),
        metrics_address,
        traces,
    )
    asyncio.run(_gateway(config, drain_s))


async def _gateway(config: GatewayConfig, drain_s: float) -> None:
    from cluster.gateway.server import Gateway

    server = Gateway(config)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        port = await server.start()
        say(f"listening at {config.listen.rpartition(':')[0]}:{port}, following {config.registry}")
        await stop.wait()
        say("draining: requests may finish, new ones are not taken")
        await server.drain(drain_s)
    finally:
        await server.stop()
