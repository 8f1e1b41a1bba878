"""`phalanx roll` and `phalanx stop`: change and end a detached deployment. They need the Ray cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands import say
from cluster.spec import DeploymentSpec


def roll(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The deployment as it shall be.")],
) -> None:
    """Replace the replicas of a running deployment, one by one, by those of SPEC: other weights, cut or settings.

    A replica that is replaced finishes its streams for up to drain_s seconds; those left go on at another replica.
    Needs RAY_ADDRESS.
    """
    from cluster.lifecycle.detached import roll as rolled
    from cluster.lifecycle.serving import checked

    asyncio.run(rolled(checked(DeploymentSpec.read(spec)), say))
    say("every replica is of the new spec")


def stop(name: Annotated[str, typer.Argument(help="Of the deployment.")]) -> None:
    """End a detached deployment. Its gateways have to be stopped by themselves. Needs RAY_ADDRESS."""
    from cluster.lifecycle.detached import stop as stopped

    asyncio.run(stopped(name, say))
    say("stopped")
