"""Options of the commands that run a part of a deployment: what it tells of itself, and where."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from workers.observation.log import LogFormat, LogLevel
from workers.observation.traces import ENDPOINT


def _collector(address: str | None) -> str | None:
    if address is not None and not re.match(ENDPOINT, address):
        raise typer.BadParameter(f"{address} is no address of a collector: give http://HOST:PORT or https://HOST:PORT")
    return address


TracesOption = Annotated[
    str | None,
    typer.Option(
        envvar=["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"],
        help="Where spans go by OTLP over gRPC, such as http://127.0.0.1:4317.",
        show_default=False,
        callback=_collector,
    ),
]
LogFormatOption = Annotated[
    LogFormat | None,
    typer.Option(envvar="PHALANX_LOG_FORMAT", help="Lines of text, or a JSON object a line.", show_default="text"),
]
LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option(envvar="PHALANX_LOG_LEVEL", help="From which level on events are written.", show_default="info"),
]
