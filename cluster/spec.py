"""DeploymentSpec: the one description of a deployment. YAML files and command-line flags are views of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from partitioning.checkpoint.files import read_bytes
from partitioning.model_spec import CacheType, DType, WeightType
from workers.observation.log import LogConfig, LogFormat, LogLevel
from workers.observation.traces import ENDPOINT
from workers.request import SpeculationType
from workers.security.peers import PeerTls
from workers.security.tls import ServerTls
from workers.speculation.options import check_options

_MOST_BYTES = 1 << 20
_YAML = (".yaml", ".yml")
_MOST_FAULTS = 5
_EVERY = ("0.0.0.0", "[::]", "*")


def _seconds(duration: object) -> object:
    """Such as "10m" or "50ms" as seconds; anything else as it is."""
    if isinstance(duration, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)(ms|[smh])", duration)):
        return float(found[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[found[2]]
    return duration


def _switch(value: object) -> object:
    """YAML reads off as false."""
    return "off" if value is False else value


Positive = Annotated[int, Field(ge=1, lt=2**31)]
_Written = float | Annotated[str, Field(pattern=r"^\d+(\.\d+)?(ms|[smh])?$")]
Duration = Annotated[float, Field(ge=0), BeforeValidator(_seconds, json_schema_input_type=_Written)]


class SpecError(ValueError):
    """A deployment that makes no sense. The message names the field and what it may be."""


class _Plain(yaml.SafeLoader):
    """YAML without aliases, with which a few lines can stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        return super().compose_node(parent, index)


class ObjectivesSpec(BaseModel):
    """What the deployment promises."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ttft: Annotated[
        Duration | None, Field(gt=0, description="The latest first token after a request: seconds, or such as 500ms.")
    ] = None
    tpot: Annotated[
        Duration | None, Field(gt=0, description="The longest mean time between an output's tokens, such as 50ms.")
    ] = None


class DeploymentSpec(BaseModel):
    """What to serve, how to cut it, and where to listen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: Annotated[str, Field(description="A Hugging Face folder, a GGUF file, or the name of a known model.")]
    name: Annotated[
        str,
        Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="Of the deployment, unique in the cluster."),
    ] = "phalanx"

    tp: Annotated[Positive | None, Field(description="Ranks that share each layer; any number. Default 1.")] = None
    pp: Annotated[Positive | None, Field(description="Stages the layers are divided into. Default 1.")] = None
    replicas: Annotated[Positive | None, Field(description="Copies of the model. Default 1.")] = None
    auto: Annotated[bool, Field(description="Search for the quickest tp, pp and replicas.")] = False
    concurrency: Annotated[Positive, Field(description="With auto: simultaneous requests to be quick for.")] = 32
    layer_split: Annotated[tuple[Positive, ...] | None, Field(description="Layers of each stage.")] = None
    devices: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="What ranks run on; auto: GPUs where there are any.")
    ] = "auto"

    dtype: Annotated[DType | None, Field(description="Of weights and KV cache. Default: the checkpoint's.")] = None
    weights: Annotated[
        WeightType,
        Field(
            description="auto: a GGUF file's 8 and 4-bit blocks as they are, unless dtype is float32, anything else in "
            "dtype; dense: always in dtype; int8, int4: quantised while loading."
        ),
    ] = "auto"
    kv_cache: Annotated[
        CacheType, Field(description="auto: keys and values in dtype; int8: in 8 bits, about twice as many tokens.")
    ] = "auto"
    max_model_len: Annotated[
        Positive | None, Field(description="Longest sequence in tokens. Default: the model's, at most 8192.")
    ] = None
    max_batch_tokens: Annotated[Positive, Field(description="Tokens computed in one step at most.")] = 512
    max_stretch: Annotated[
        float, Field(gt=1, description="How many times as long a prompt may make the steps of running streams.")
    ] = 1.8
    objectives: Annotated[
        ObjectivesSpec | None,
        Field(description="ttft and tpot: steps are shared so that they are kept; what would be late is refused."),
    ] = None
    news_interval_ms: Annotated[
        float, Field(ge=0, le=1000, description="How long a stream's tokens may wait to be sent together.")
    ] = 40.0
    kv_block_size: Annotated[Positive, Field(description="Tokens in a KV block.")] = 16
    kv_cache_tokens: Annotated[
        Positive | None, Field(description="Size of a replica's KV cache. Default: what memory leaves.")
    ] = None
    memory_fraction: Annotated[
        float, Field(gt=0, le=1, description="Share of a device's memory that a rank may use.")
    ] = 0.9

    max_running: Annotated[Positive, Field(description="Sequences in a replica's running batch at most.")] = 64
    max_waiting: Annotated[Positive, Field(description="Sequences that may wait at a replica.")] = 1024
    max_waiting_tokens: Annotated[
        Positive, Field(description="Tokens that these may need: their prompts, and what may be generated.")
    ] = 1 << 20
    prefix_caching: Annotated[bool, Field(description="Reuse KV blocks of equal beginnings.")] = True
    speculation: Annotated[
        SpeculationType,
        BeforeValidator(_switch, json_schema_input_type=SpeculationType | Literal[False]),
        Field(
            description="Speculative decoding: guess tokens, and keep those that the model draws too. ngram: guesses "
            "from prompt and output so far; draft: of draft_model; early-exit: of the first draft_layers layers; off: "
            "one token a step."
        ),
    ] = "ngram"
    draft_model: Annotated[
        str | None,
        Field(description="With speculation draft: a small model with the same tokenizer, held whole by rank 0."),
    ] = None
    draft_layers: Annotated[
        Positive | None, Field(description="With speculation early-exit: after how many layers the model guesses.")
    ] = None
    collective_timeout_s: Annotated[
        float, Field(gt=0, description="How long a step may stand still before the replica counts as hung.")
    ] = 20.0
    recut: Annotated[
        bool, Field(description="Cut a replica anew for what is left when the planned cut has no room any more.")
    ] = True
    wait_for_devices: Annotated[
        Duration, Field(description="How long the start waits for devices: seconds, or such as 10m or 1h.")
    ] = 0.0

    registry_listen: Annotated[
        str | None,
        Field(
            pattern=r"^.*:\d{1,5}$",
            description="Where the coordinator tells gateways of replicas, as host:port, or :port for that port of its "
            "node's Ray address. Default: any port, of 127.0.0.1 on a cluster of one node, else of the node's address.",
        ),
    ] = None
    registry_secret: Annotated[
        Path | None,
        Field(description="A file with what gateways show the registry. Default: the coordinator makes a secret up."),
    ] = None
    internal_tls: Annotated[
        PeerTls | None,
        Field(description="certificate, key and ca (PEM files on every node): TLS between the deployment's processes."),
    ] = None
    listen: Annotated[str, Field(pattern=r"^.+:\d{1,5}$", description="Where the gateway listens, as host:port.")] = (
        "127.0.0.1:50051"
    )
    tls: Annotated[ServerTls | None, Field(description="certificate and key (PEM files), and client_ca for mTLS.")] = (
        None
    )
    tokens: Annotated[Path | None, Field(description="A tokens file: who may use the gateway.")] = None
    insecure: Annotated[
        bool, Field(description="Listen beyond this machine without TLS or tokens: the network keeps others out.")
    ] = False
    metrics_address: Annotated[
        str | None,
        Field(pattern=r"^.+:\d{1,5}$", description="host:port of the gateway's metrics, unencrypted. Default: none."),
    ] = None
    coordinator_metrics_address: Annotated[
        str | None,
        Field(
            pattern=r"^.*:\d{1,5}$",
            description="host:port of the coordinator's metrics and those of all replicas, unencrypted, or :port for "
            "that port of its node's Ray address. Default: none.",
        ),
    ] = None
    ray_metrics: Annotated[
        bool, Field(description="Show the coordinator's metrics and those of all replicas as Ray's own, too.")
    ] = False
    max_sequences: Annotated[Positive, Field(description="Sequences a gateway takes on at once.")] = 1024
    recovery_s: Annotated[
        float, Field(gt=0, description="How long a stream whose replica is lost waits for another.")
    ] = 120.0
    send_timeout_s: Annotated[
        float, Field(gt=0, description="How long a client may leave a stream unread until it is ended.")
    ] = 600.0
    drain_s: Annotated[
        float, Field(ge=0, description="How long requests may take to finish when the deployment is stopped.")
    ] = 30.0

    log_format: Annotated[LogFormat, Field(description="Lines of text, or a JSON object a line.")] = "text"
    log_level: Annotated[LogLevel, Field(description="From which level on Phalanx's processes write to the log.")] = (
        "info"
    )
    traces: Annotated[
        str | None,
        Field(pattern=ENDPOINT, description="Where spans go by OTLP over gRPC: http://host:4317."),
    ] = None

    @property
    def log(self) -> LogConfig:
        return LogConfig(self.log_format, self.log_level)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.registry_listen is not None and self.registry_listen.rpartition(":")[0] in _EVERY:
            raise ValueError(
                f"registry_listen: {self.registry_listen} would be every address of its node; leave the host out, as "
                f"in :{self.registry_listen.rpartition(':')[2]}, for the node's address in the Ray cluster"
            )
        if self.auto and (self.tp or self.pp or self.layer_split):
            raise ValueError("auto chooses tp, pp and layer_split: leave these out")
        check_options(self.speculation, self.draft_model, self.draft_layers)
        return self

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """A checked spec. Raises SpecError."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, e['loc'])) or 'spec'}: {e['msg']}" for e in error.errors()]
            raise SpecError(f"the deployment makes no sense: {'; '.join(faults[:_MOST_FAULTS])}") from error

    @classmethod
    def named(cls, target: str, **fields: Any) -> Self:
        """The spec in the YAML file `target`, or of the model of that name, with `fields`. Raises SpecError."""
        return cls.read(Path(target), **fields) if target.endswith(_YAML) else cls.of({"model": target, **fields})

    @classmethod
    def read(cls, file: Path, **overrides: Any) -> Self:
        """The spec in a YAML file, with some fields replaced. Raises SpecError."""
        try:
            fields = yaml.load(read_bytes(file, _MOST_BYTES).decode(), _Plain)
        # PyYAML lets through what int() and datetime() say of a scalar.
        except (ValueError, yaml.YAMLError) as error:
            raise SpecError(f"cannot read {file}: {error}") from error
        except RecursionError as error:
            raise SpecError(f"cannot read {file}: it is nested deeper than any deployment is") from error
        if not isinstance(fields, dict):
            raise SpecError(f"{file} has to be a YAML mapping with at least the key model")
        return cls.of({**fields, **overrides})
