"""`phalanx top`: a deployment at work, live."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live

from cluster.commands.connect import (
    DEFAULT_ADDRESS,
    AddressOption,
    CaOption,
    CertificateOption,
    KeyOption,
    TokenFileOption,
    connect,
)
from cluster.status.document import Status
from cluster.status.keyboard import keyboard
from cluster.status.rates import rates
from cluster.status.reading import status_of
from cluster.status.screen import frame, unreachable
from phalanx import Client, DeadlineExceeded, Unavailable

_ASK_S = 5.0


def top(
    address: AddressOption = DEFAULT_ADDRESS,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks; rates are those between.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print one frame and end.")] = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Watch replicas, ranks, streams, speed, KV blocks and events, as a gateway knows them. q or Ctrl-C ends it.

    Rates and replicas' figures are those of the whole deployment; requests, TTFT, TPOT and objectives are those of the
    gateway that is asked. Where the output is no terminal, one frame is printed, as with --once.

    \b
    phalanx top
    phalanx top --address 10.0.0.7:50051 --token-file admin-token --ca ca.pem
    phalanx top --once --interval 10   # one frame, its rates over 10 s
    phalanx status --json              # the same figures for programs
    """
    console = Console()
    with connect(address, _ASK_S, token_file, ca, certificate, key) as client:
        if once or not console.is_terminal:
            before = status_of(client.cluster())
            time.sleep(interval)
            now = status_of(client.cluster())
            console.print(frame(now, rates(before, now), address, console.width))
        else:
            with suppress(KeyboardInterrupt):
                _watch(client, console, address, interval)


def _watch(client: Client, console: Console, address: str, interval: float) -> None:
    with keyboard() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        before: Status | None = None
        lost: float | None = None
        while True:
            try:
                now = status_of(client.cluster())
            except (Unavailable, DeadlineExceeded) as error:
                lost = lost or time.monotonic()
                banner = unreachable(address, str(error), time.monotonic() - lost)
                shown = [] if before is None else [frame(before, {}, address, console.width, console.height - 3)]
                live.update(Group(banner, *shown), refresh=True)
            else:
                speeds = {} if before is None else rates(before, now)
                live.update(frame(now, speeds, address, console.width, console.height), refresh=True)
                before, lost = now, None
            if keys.wait(interval, "qQ"):
                return
