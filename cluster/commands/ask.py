"""`phalanx ask`: one question, its answer streamed."""

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
from phalanx import SamplingOptions


def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    address: AddressOption = DEFAULT_ADDRESS,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    system: Annotated[str | None, typer.Option(help="A system message that goes before.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is more random.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds.")] = None,
) -> None:
    """Ask the served model a question. Ctrl-C ends the answer."""
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    options = SamplingOptions(max_tokens=max_tokens, temperature=temperature)
    if seed is not None:
        options["seed"] = seed
    with connect(address, timeout, token_file, ca, certificate, key) as client:
        for chunk in client.chat_stream(messages, **options):
            typer.echo(chunk.text, nl=False)
    typer.echo()
