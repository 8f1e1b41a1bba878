"""`phalanx plan`: how a model would be cut, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.commands import KV_CACHE_HELP, WEIGHTS_HELP
from cluster.models import resolve_model
from partitioning.devices import known_devices, parse_topology
from partitioning.host_speed import ASSUMED, host_speed
from partitioning.model_spec import CacheType, DType, ModelSpec, WeightType
from partitioning.plan_json import plan_to_json
from partitioning.plan_table import TABLE_WIDTH, plan_table
from partitioning.planner import auto_plan, make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology, usable_cores

_DEVICES_HELP = (
    "Devices of a node, such as 8xH100; a comma separates kinds of node, a plus unlike devices of one. "
    f"Known: {', '.join(known_devices())}. Without it: this machine's CPU."
)
_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")


def plan(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder (config.json is enough), a GGUF file or a name.")],
    tp: Annotated[int | None, typer.Option(min=1, help="Ranks that share each layer; any number.")] = None,
    pp: Annotated[int | None, typer.Option(min=1, help="Stages the layers are divided into.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Copies of the model.")] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Search for the quickest tp, pp and replicas.")] = False,
    concurrency: Annotated[
        int, typer.Option(min=1, help="With --auto: simultaneous requests to be quick for; 1 means least latency.")
    ] = 32,
    devices: Annotated[
        str | None,
        typer.Option(help=_DEVICES_HELP),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="With --devices: nodes of each kind.")] = 1,
    network_gbit: Annotated[
        float | None, typer.Option(help="With --devices: network speed of a rank. Default: 400, CPU ranks 10.")
    ] = None,
    dtype: Annotated[
        DType | None, typer.Option(help="Float type of weights and KV cache. Default: the checkpoint's.")
    ] = None,
    weights: Annotated[WeightType, typer.Option(help=WEIGHTS_HELP)] = "auto",
    kv_cache: Annotated[CacheType, typer.Option(help=KV_CACHE_HELP)] = "auto",
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest sequence. Default: the model's, at most 8192.")
    ] = None,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens computed in one step at most.")] = 512,
    kv_cache_tokens: Annotated[
        int | None, typer.Option(help="Size of the KV cache. Default: what memory leaves.")
    ] = None,
    layer_split: Annotated[str | None, typer.Option(help="Layers of each stage, such as 10,20.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine's speed anew instead of taking what is known.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON instead of a table.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the plan as JSON to this file.")] = None,
) -> None:
    """Show which rank would hold which slice of MODEL, and how quick that should be.

    Works without the cluster and without the weights: phalanx plan FOLDER --auto --nodes 16 --devices 8xH100
    """
    if auto and (tp or pp or layer_split):
        raise typer.BadParameter("--auto chooses tp, pp and the layers of the stages: leave --tp, --pp, --layer-split")
    if devices is None and (nodes > 1 or network_gbit is not None):
        raise typer.BadParameter("--nodes and --network-gbit describe the cluster of --devices: name its devices")
    path = resolve_model(model)
    spec = _model_spec(path)
    speed = ASSUMED if devices is not None else host_speed(usable_cores(), anew=calibrate)
    cluster = None if devices is None else parse_topology(devices, nodes, network_gbit)
    settings = plan_settings(
        spec,
        dtype=dtype,
        weights=weights,
        kv_cache=kv_cache,
        max_model_len=max_model_len,
        max_batch_tokens=max_batch_tokens,
        kv_cache_tokens=kv_cache_tokens,
    )
    if auto:
        made = auto_plan(
            spec,
            str(path),
            cluster or local_topology(usable_cores(), speed),
            settings,
            replicas=replicas,
            concurrency=concurrency,
        )
    else:
        tp, pp, replicas = tp or 1, pp or 1, replicas or 1
        made = make_plan(
            spec,
            str(path),
            cluster or local_topology(tp * pp * replicas, speed),
            settings,
            tp=tp,
            pp=pp,
            replicas=replicas,
            layer_split=_numbers(layer_split),
        )
    text = plan_to_json(made)
    if output is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise typer.BadParameter(f"cannot write --output {output}: {error.strerror}") from error
    if json:
        typer.echo(text, nl=False)
    else:
        Console(width=max(Console().width, TABLE_WIDTH)).print(plan_table(made))
        if speed.measured:
            typer.echo(
                f"This machine, as measured: {speed.host_bandwidth / 1e9:.0f} GB/s read, {speed.core_flops / 1e9:.0f} "
                "GFLOP/s a core in bf16 (--calibrate measures anew)"
            )


def _model_spec(path: Path) -> ModelSpec:
    """What the checkpoint says of the model; a folder with a configuration and no weights is enough."""
    # These import torch, which would make `phalanx plan --help` wait for seconds.
    from partitioning.checkpoint import open_checkpoint
    from partitioning.checkpoint.hf_config import read_hf_config

    if path.is_dir() and not any(entry.suffix in _WEIGHT_SUFFIXES for entry in path.iterdir()):
        return read_hf_config(path, has_own_head=False, stored_dtype="bfloat16")
    checkpoint = open_checkpoint(path)
    checkpoint.close()
    return checkpoint.spec


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--layer-split {text} must be whole numbers with commas, such as 10,20") from None
