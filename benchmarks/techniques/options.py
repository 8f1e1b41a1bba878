"""Which rows a command line asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.techniques.rows import BASELINE, Row

Only = Annotated[list[str] | None, typer.Option(help="These rows alone, and the baseline; may repeat.")]
Also = Annotated[list[str] | None, typer.Option(help="A further checkpoint, NAME=FOLDER; may repeat.")]


def chosen(rows: Sequence[Row], only: Only, also: Also) -> list[Row]:
    """Those of `rows` and of `also` that are asked for. Raises BadParameter: there is no such row or checkpoint."""
    further = []
    for one in also or ():
        name, equals, folder = one.partition("=")
        if not equals or not Path(folder).exists():
            raise typer.BadParameter(f"--also {one} must be NAME=CHECKPOINT, a folder or a file that is there")
        further.append(Row(name, checkpoint=str(Path(folder).resolve()), weights="auto"))
    known = [*rows, *further]
    if unknown := set(only or ()) - {row.name for row in known}:
        names = ", ".join(row.name for row in known)
        raise typer.BadParameter(f"no row {', '.join(sorted(unknown))}; there are {names}")
    return [row for row in known if not only or row.name in (BASELINE, *only)]
