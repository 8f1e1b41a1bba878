"""`phalanx doctor`: is everything there for a deployment, before it is started?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from cluster.commands import say
from cluster.spec import DeploymentSpec


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="MODEL|SPEC.yaml", help="What shall be served: the same that phalanx serve takes."),
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Examine every node of the Ray cluster at RAY_ADDRESS, and their links.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine, or every node of a Ray cluster, before the first deployment.

    Versions, processors, native engine, GPUs, memory, /dev/shm, open files, ports, Ray's token; with a spec also the
    plan, the model, certificates and secrets; with --cluster what has to be the same everywhere, clocks, and the speed
    between nodes (a second for each pair, up to eight rounds). What is not ok comes with a remedy. Nothing is changed;
    the native engine is compiled where it is not there yet. The exit code is 1 if anything failed, 0 with warnings.

    \b
    phalanx doctor               # this machine
    phalanx doctor spec.yaml     # and what a deployment needs of it
    RAY_ADDRESS=10.0.0.1:6379 phalanx doctor spec.yaml --cluster
    phalanx doctor --json | jq '.findings[] | select(.level != "ok")'
    """
    # Ray takes seconds to import.
    from cluster.doctor.diagnosis import of_this_machine
    from cluster.doctor.report import healthy, report_json, report_table

    spec = None if target is None else DeploymentSpec.named(target)
    if cluster:
        from cluster.doctor.cluster import of_the_cluster

        places = of_the_cluster(spec, say)
    else:
        places = of_this_machine(spec, say)
    if json:
        typer.echo(report_json(places))
    else:
        Console().print(report_table(places))
    if not healthy(places):
        raise typer.Exit(1)
