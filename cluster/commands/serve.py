"""`phalanx serve`: a deployment on a Ray cluster, with a gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.commands import DRAFT_LAYERS_HELP, DRAFT_MODEL_HELP, KV_CACHE_HELP, SPECULATION_HELP, WEIGHTS_HELP, say
from cluster.commands.observation import LogFormatOption, LogLevelOption, TracesOption
from cluster.commands.protection import REGISTRY_SECRET_HELP
from cluster.spec import DeploymentSpec
from partitioning.model_spec import CacheType, DType, WeightType
from workers.observation.log import set_up
from workers.request import SpeculationType


def serve(
    target: Annotated[
        str,
        typer.Argument(metavar="MODEL|SPEC.yaml", help="A folder, GGUF file or known name; or a deployment's YAML."),
    ],
    tp: Annotated[int | None, typer.Option(help="Ranks that share each layer; any number.")] = None,
    pp: Annotated[int | None, typer.Option(help="Stages the layers are divided into.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Copies of the model.")] = None,
    auto: Annotated[bool | None, typer.Option("--auto", help="Search for the quickest tp, pp and replicas.")] = None,
    devices: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: Annotated[DType | None, typer.Option(help="Float type of weights and KV cache.")] = None,
    weights: Annotated[WeightType | None, typer.Option(help=WEIGHTS_HELP)] = None,
    kv_cache: Annotated[CacheType | None, typer.Option(help=KV_CACHE_HELP)] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest sequence in tokens.")] = None,
    kv_cache_tokens: Annotated[int | None, typer.Option(help="Size of a replica's KV cache.")] = None,
    speculation: Annotated[SpeculationType | None, typer.Option(help=SPECULATION_HELP)] = None,
    draft_model: Annotated[str | None, typer.Option(help=DRAFT_MODEL_HELP)] = None,
    draft_layers: Annotated[int | None, typer.Option(help=DRAFT_LAYERS_HELP)] = None,
    name: Annotated[str | None, typer.Option(help="Of the deployment, unique in the cluster.")] = None,
    listen: Annotated[str | None, typer.Option(help="Where the gateway listens, as HOST:PORT.")] = None,
    metrics_address: Annotated[
        str | None, typer.Option(help="HOST:PORT for Prometheus to fetch the gateway's metrics from.")
    ] = None,
    coordinator_metrics_address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT, or :PORT of the coordinator's node, for its metrics and those of all replicas."),
    ] = None,
    registry_secret: Annotated[
        Path | None,
        typer.Option(envvar="PHALANX_REGISTRY_SECRET_FILE", help=f"A file with {REGISTRY_SECRET_HELP}."),
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond this machine without TLS or tokens.")
    ] = None,
    log_format: LogFormatOption = None,
    log_level: LogLevelOption = None,
    traces: TracesOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when it is ready; it runs until phalanx stop. Starts no gateway.")
    ] = False,
) -> None:
    """Serve MODEL, cut as asked, until Ctrl-C or SIGTERM.

    Joins the Ray cluster at RAY_ADDRESS, or starts one on this machine. A YAML file can say more than the options do
    (see docs/deployment.md); options win over the file. On a cluster: ray job submit --working-dir . -- python -m
    cluster.cli serve MODEL --tp 2 --pp 2

    With --detach the deployment outlives this command, and gateways are started by phalanx gateway. Once more with a
    changed file, it replaces the replicas of the running deployment one by one, as phalanx roll does.
    """
    given = {
        "tp": tp,
        "pp": pp,
        "replicas": replicas,
        "auto": auto,
        "devices": devices,
        "dtype": dtype,
        "weights": weights,
        "kv_cache": kv_cache,
        "max_model_len": max_model_len,
        "kv_cache_tokens": kv_cache_tokens,
        "speculation": speculation,
        "draft_model": draft_model,
        "draft_layers": draft_layers,
        "name": name,
        "listen": listen,
        "metrics_address": metrics_address,
        "coordinator_metrics_address": coordinator_metrics_address,
        "registry_secret": registry_secret,
        "insecure": insecure,
        "log_format": log_format,
        "log_level": log_level,
        "traces": traces,
    }
    fields: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    spec = DeploymentSpec.named(target, **fields)
    set_up(spec.log, "serve" if detach else "gateway")
    asyncio.run(_detach(spec) if detach else _serve(spec))


async def _detach(spec: DeploymentSpec) -> None:
    from cluster.lifecycle.detached import apply
    from cluster.lifecycle.serving import checked

    registry = await apply(checked(spec), say)
    say(f"{spec.name} is ready, and goes on until: phalanx stop {spec.name}. A gateway for it, anywhere:")
    say(f"  phalanx secret {spec.name} --file FILE    # here: what the registry lets gateways in by")
    say(f"  phalanx gateway --registry {registry} --registry-secret FILE")


async def _serve(spec: DeploymentSpec) -> None:
    # Ray and torch take seconds to import.
    from cluster.lifecycle.serving import Interrupted, checked, deployment

    try:
        async with deployment(checked(spec), say) as (address, until_over):
            say(f"{spec.name} is ready at {address}. Ctrl-C stops it. Try:")
            say(f'  phalanx ask "What is the capital of France?" --address {address}')
            say(f"  phalanx status --address {address}")
            await until_over()
    except Interrupted as interrupted:
        say(str(interrupted))
        raise typer.Exit(130) from None
    say("stopped")
