"""`phalanx chat`: a conversation in the terminal."""

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
from phalanx import Client, PhalanxError


def chat(
    address: AddressOption = DEFAULT_ADDRESS,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    system: Annotated[str | None, typer.Option(help="A system message that the conversation begins with.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is more random.")] = 0.0,
) -> None:
    """Talk to the served model. Ctrl-C ends an answer, Ctrl-D the conversation, /new begins another."""
    beginning = [] if system is None else [{"role": "system", "content": system}]
    messages = list(beginning)
    with connect(address, None, token_file, ca, certificate, key) as client:
        typer.echo(f"{client.model().name} at {address}. Ctrl-D leaves, /new begins anew.")
        while (line := _read_line()) is not None:
            if line == "/new":
                messages = list(beginning)
                continue
            if not line.strip():
                continue
            messages.append({"role": "user", "content": line})
            answer = _answer(client, messages, max_tokens, temperature)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _read_line() -> str | None:
    """What the user typed; None at the end of input."""
    try:
        return input("\n> ")
    except (EOFError, KeyboardInterrupt):
        typer.echo()
        return None


def _answer(client: Client, messages: list[dict[str, str]], max_tokens: int, temperature: float) -> str | None:
    """Prints the answer as it comes and returns it; None when there was none because of an error."""
    answer = ""
    try:
        for chunk in client.chat_stream(messages, max_tokens=max_tokens, temperature=temperature):
            answer += chunk.text
            typer.echo(chunk.text, nl=False)
    except KeyboardInterrupt:
        typer.echo(" …", nl=False)
    except PhalanxError as error:
        typer.echo(f"Error: {error}", err=True)
        return None
    typer.echo()
    return answer
