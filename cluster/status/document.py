"""The state of a deployment as JSON, in a form that scripts may rely on: `docs/status.schema.json` describes it.

Within a version keys are added, never renamed, retyped or removed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["unspecified", "starting", "ready", "failed", "draining"]
Kind = Literal[
    "unspecified", "epoch_started", "epoch_ready", "epoch_ended", "replica_draining", "replica_gone", "scale", "roll"
]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)


class Rank(_Part):
    """One process of a replica."""

    rank: Annotated[Count, Field(description="Its number in the plan.")]
    node: Annotated[str, Field(description="The node it runs on.")]
    pid: Annotated[Count, Field(description="Its process id there.")]
    device: Annotated[str, Field(description="What it computes on: cpu, cuda:0, …")]
    memory_bytes: Annotated[
        Count | None, Field(description="GPU: what torch holds of its memory; CPU: the process's resident memory.")
    ]
    memory_total_bytes: Annotated[Count | None, Field(description="What its GPU or its machine has.")]
    heard_s: Annotated[Seconds | None, Field(description="Since its last sign of life to the coordinator.")]
    doing: Annotated[str | None, Field(description="For people.")]


class Load(_Part):
    """How busy a replica is, as of its last step. The tokens are totals of its epoch."""

    running: Annotated[Count, Field(description="Sequences in the running batch.")]
    waiting: Annotated[Count, Field(description="Sequences that wait for a place in it.")]
    parked: Annotated[Count, Field(description="Sequences that rest until their clients read.")]
    kv_blocks: Annotated[Count, Field(description="All KV blocks.")]
    kv_blocks_used: Annotated[Count, Field(description="Held by sequences.")]
    kv_blocks_cached: Annotated[Count, Field(description="Held by none, with content that a prompt may find.")]
    kv_blocks_free: Annotated[Count, Field(description="Held by none, and empty.")]
    steps: Annotated[Count, Field(description="Steps so far.")]
    prompt_tokens: Annotated[
        Count, Field(description="Of sequences that were given a place; again after a preemption or a resumption.")
    ]
    cached_prompt_tokens: Annotated[Count, Field(description="Those of them that the prefix cache had.")]
    generated_tokens: Annotated[Count, Field(description="Generated so far.")]


class Replica(_Part):
    """One copy of the model."""

    id: Count
    epoch: Annotated[Count, Field(description="Counts its lives, from 1.")]
    state: Annotated[State, Field(description="As the coordinator says.")]
    connected: Annotated[bool, Field(description="Whether this gateway reaches it.")]
    detail: Annotated[str, Field(description="What happened last, for people.")]
    address: Annotated[str | None, Field(description="HOST:PORT of its rank 0 while it serves.")]
    generation: Annotated[Count, Field(description="Which of the deployment's specs it was built from, from 1.")]
    tp: Annotated[Count | None, Field(description="Ranks that share each layer.")]
    pp: Annotated[Count | None, Field(description="Stages.")]
    load: Annotated[Load | None, Field(description="null until this gateway has heard of it.")]
    ranks: list[Rank]


class Objectives(_Part):
    """What the deployment promises, and what this gateway saw kept since it began."""

    ttft_s: Annotated[Seconds | None, Field(description="The latest first token.")]
    tpot_s: Annotated[Seconds | None, Field(description="The longest mean time between tokens.")]
    finished: Annotated[Count, Field(description="Outputs that have finished.")]
    kept: Annotated[Count, Field(description="Those of them that kept both.")]
    shed: Annotated[Count, Field(description="Requests that were refused as too late.")]


class Latency(_Part):
    """Of the outputs that this gateway finished in the last five minutes, up to 1,024 of them."""

    outputs: Annotated[Count, Field(description="How many these are.")]
    ttft_p50_s: Annotated[Seconds, Field(description="Time to first token, median.")]
    ttft_p95_s: Annotated[Seconds, Field(description="Time to first token, 95th percentile.")]
    tpot_p50_s: Annotated[Seconds, Field(description="Mean time between an output's tokens, median.")]
    tpot_p95_s: Annotated[Seconds, Field(description="Mean time between an output's tokens, 95th percentile.")]


class Gateway(_Part):
    """The gateway that answered."""

    active_requests: Annotated[Count, Field(description="Requests that it is answering.")]
    draining: Annotated[bool, Field(description="Whether it takes no more of them.")]


class Event(_Part):
    """Something that happened to the deployment."""

    unix_s: Annotated[Seconds, Field(description="When, in seconds since 1970 (UTC), by the coordinator's clock.")]
    kind: Kind
    replica: Count | None
    epoch: Count | None
    detail: Annotated[str, Field(description="Why, or with what result, for people.")]


class Status(_Part):
    """What `phalanx status --json` prints."""

    version: Annotated[Literal[1], Field(description="Of this form.")] = 1
    unix_s: Annotated[Seconds, Field(description="When this was asked, in seconds since 1970 (UTC).")]
    deployment: str
    plan: Annotated[dict[str, Any] | None, Field(description="As `phalanx plan --json` prints it.")]
    gateway: Gateway
    replicas: list[Replica]
    objectives: Annotated[Objectives | None, Field(description="null where nothing is promised.")]
    recent: Annotated[Latency | None, Field(description="null when nothing has finished lately.")]
    events: Annotated[list[Event], Field(description="The last ones, oldest first, since the coordinator began.")]
