"""`phalanx models`: fetch the models that Phalanx knows by name."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.models import KNOWN_MODELS, ModelError, pull
from partitioning.cache import CacheError

app = typer.Typer(help="Fetch and list the models that Phalanx knows by name.", no_args_is_help=True)


@app.command("pull")
def pull_command(name: Annotated[str, typer.Argument(help=f"One of: {', '.join(KNOWN_MODELS)}.")]) -> None:
    """Fetch a model into the cache and print its path."""
    model = KNOWN_MODELS.get(name)
    if model is None:
        raise typer.BadParameter(f"{name} is not a known model; known are: {', '.join(KNOWN_MODELS)}")
    try:
        path = pull(model)
    except (ModelError, CacheError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(path)


@app.command("list")
def list_command() -> None:
    """List the known models, and where those that were pulled lie."""
    for model in KNOWN_MODELS.values():
        place = model.path if model.is_pulled else f"not pulled ({model.size / 1e6:.0f} MB)"
        typer.echo(f"{model.name}\t{model.description}\t{place}")
