"""`phalanx status`: plan, replicas, epochs and load."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cluster.commands.connect import (
    DEFAULT_ADDRESS,
    AddressOption,
    CaOption,
    CertificateOption,
    KeyOption,
    TokenFileOption,
    connect,
)
from cluster.status.reading import status_of
from partitioning.plan_json import plan_from_json
from partitioning.plan_table import TABLE_WIDTH, plan_table
from phalanx.v1 import admin_pb2, registry_pb2


def status(
    address: AddressOption = DEFAULT_ADDRESS,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the state as JSON, in the form that docs/status.schema.json describes."),
    ] = False,
) -> None:
    """Show the plan, the replicas and their load, as a gateway knows them. `phalanx top` shows them live.

    \b
    phalanx status --address 10.0.0.7:50051
    phalanx status --json | jq -c '.replicas[] | {id, state, epoch, load}'
    phalanx status --json | jq -e 'all(.replicas[]; .connected)'   # exit code
    """
    with connect(address, 10, token_file, ca, certificate, key) as client:
        cluster = client.cluster()
    if json:
        typer.echo(status_of(cluster).model_dump_json(indent=2))
        return
    console = Console(width=max(Console().width, TABLE_WIDTH))
    if cluster.plan_json:
        console.print(plan_table(plan_from_json(cluster.plan_json)))
    state = "draining" if cluster.draining else "serving"
    console.print(f"\n{cluster.deployment}: {state}, {cluster.active_requests} requests at this gateway", style="bold")
    if cluster.HasField("objectives"):
        console.print(_objectives(cluster.objectives))
    console.print(_replicas(cluster))


def _objectives(report: admin_pb2.ObjectivesReport) -> str:
    promised = [
        f"{name} {seconds * 1000:,.0f} ms"
        for name, seconds in (("ttft", report.ttft_seconds), ("tpot", report.tpot_seconds))
        if seconds
    ]
    share = f"{report.kept / report.finished:.1%}" if report.finished else "–"
    return (
        f"objectives: {', '.join(promised)}: kept by {share} of {report.finished:,} outputs; "
        f"{report.shed:,} requests refused as too late"
    )


def _replicas(cluster: admin_pb2.GetClusterResponse) -> Table:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD)
    for name in ("replica", "epoch", "state", "address", "running", "waiting", "KV blocks free", "tokens", "ranks"):
        table.add_column(name)
    for entry in cluster.replicas:
        replica, load = entry.replica, entry.load
        state = registry_pb2.ReplicaState.Name(replica.state).removeprefix("REPLICA_STATE_").lower()
        if state == "ready" and not entry.connected:
            state = "not reachable from this gateway"
        table.add_row(
            str(replica.id),
            str(replica.epoch),
            replica.detail if state == "ready" else f"{state}: {replica.detail}",
            replica.address or "–",
            str(load.running),
            str(load.waiting),
            f"{load.free_blocks:,} of {load.total_blocks:,}",
            f"{load.generated_tokens:,}",
            " ".join(f"{rank.node}:{rank.pid}" for rank in replica.ranks),
        )
    return table
