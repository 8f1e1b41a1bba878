"""`phalanx token new`: makes a token for clients, and its line for the tokens file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

app = typer.Typer(help="Tokens that clients show to gateways.", no_args_is_help=True)


@app.callback()
def token() -> None:
    """Tokens that clients show to gateways."""


@app.command("new")
def new(
    tenant: Annotated[str, typer.Option(help="Whose it is: tenants share a cluster by weight.")],
    file: Annotated[Path | None, typer.Option(help="A tokens file, to which the entry is added.")] = None,
    weight: Annotated[float, typer.Option(min=0.001, help="The tenant's share, relative to others.")] = 1.0,
    admin: Annotated[bool, typer.Option("--admin", help="May look at the cluster, drain and scale it.")] = False,
    name: Annotated[str, typer.Option(help="For people: who or what uses it.")] = "",
) -> None:
    """Make a token. It is shown once, on standard output; the tokens file holds its hash alone.

    Gateways read a changed file by themselves. Clients give the token as PHALANX_TOKEN_FILE, --token-file, or
    Client(token=...).
    """
    from cluster.security.tokens import hash_of, new_token, read_entries

    made = new_token()
    entry = {"tenant": tenant, "sha256": hash_of(made), "weight": weight, "admin": admin, "name": name}
    entry = {key: value for key, value in entry.items() if value not in ("", False)}
    line = yaml.safe_dump([entry], sort_keys=False)
    if file is None:
        typer.echo(f"its entry in the tokens file:\n{line}", err=True)
    else:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        file.touch(mode=0o600)
        file.write_text(f"{before}{line}", encoding="utf-8")
        try:
            read_entries(file)
        except Exception:
            file.write_text(before, encoding="utf-8")
            raise
        typer.echo(f"added to {file}", err=True)
    typer.echo(made)
