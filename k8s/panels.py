"""What Grafana's dashboard shows. In the expressions @all stands for the labels of the chosen deployment, @tenant and
@replica also for those of the chosen tenants or replicas, and @window for a time that a rate can be taken over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """Lines over time: `lines` has their expressions by legend. `unit` is Grafana's name for it."""

    title: str
    unit: str
    lines: dict[str, str]
    stacked: bool = False
    description: str = ""


def _percentiles(buckets: str) -> dict[str, str]:
    return {
        f"p{percent}": f"histogram_quantile({percent / 100}, sum by (le) (rate({buckets}[@window])))"
        for percent in (50, 90, 99)
    }


_RATE, _TOKENS, _SHARE = "reqps", "suffix: tok/s", "percentunit"

_REQUESTS = (
    Panel(
        "TTFT", "s", _percentiles("phalanx_request_ttft_seconds_bucket{@tenant}"),
        description="Time to the first token.",
    ),
    Panel(
        "TPOT", "s", _percentiles("phalanx_request_tpot_seconds_bucket{@tenant}"),
        description="Mean time between the tokens of an output.",
    ),
    Panel("Duration", "s", _percentiles("phalanx_request_duration_seconds_bucket{@tenant}")),
    Panel(
        "Objectives kept", _SHARE,
        {
            "{{objective}}": 'sum by (objective) (rate(phalanx_objective_requests_total{@all,kept="true"}[@window]))'
            " / sum by (objective) (rate(phalanx_objective_requests_total{@all}[@window]))"
        },
        description="The share of requests that kept each of the spec's objectives.",
    ),
    Panel(
        "Goodput", _RATE,
        {"{{objective}}": 'sum by (objective) (rate(phalanx_objective_requests_total{@all,kept="true"}[@window]))'},
        description="Requests that kept the objective.",
    ),
    Panel(
        "Requests by finish reason", _RATE,
        {
            "{{finish_reason}}": "sum by (finish_reason)"
            " (rate(phalanx_request_duration_seconds_count{@tenant}[@window]))"
        },
        stacked=True,
    ),
    Panel(
        "Refusals", _RATE,
        {"{{reason}}": "sum by (reason) (rate(phalanx_requests_refused_total{@all}[@window]))"}, stacked=True,
    ),
    Panel(
        "Tokens", _TOKENS,
        {
            "in": "sum(rate(phalanx_prompt_tokens_total{@tenant}[@window]))",
            "in, cached": "sum(rate(phalanx_cached_prompt_tokens_total{@tenant}[@window]))",
            "out": "sum(rate(phalanx_completion_tokens_total{@tenant}[@window]))",
        },
    ),
    Panel(
        "Tokens out by tenant", _TOKENS,
        {"{{tenant}}": "sum by (tenant) (rate(phalanx_completion_tokens_total{@tenant}[@window]))"}, stacked=True,
    ),
)  # fmt: skip

_GATEWAYS = (
    Panel("Open streams", "short", {"{{instance}}": "phalanx_streams{@all}"}, stacked=True),
    Panel(
        "Streams resumed", "ops",
        {"{{cause}}": "sum by (cause) (rate(phalanx_streams_resumed_total{@all}[@window]))"},
        description="Streams that went on after their replica or gateway was lost.",
    ),
    Panel("Replicas connected", "short", {"{{instance}}": "phalanx_gateway_replicas{@all}"}),
)  # fmt: skip

_REPLICAS = (
    Panel(
        "Sequences", "short",
        {
            "{{replica}} running": "sum by (replica) (phalanx_sequences_running{@replica})",
            "{{replica}} waiting": "sum by (replica) (phalanx_sequences_waiting{@replica})",
        },
    ),
    Panel(
        "Tokens generated", _TOKENS,
        {"{{replica}}": "sum by (replica) (rate(phalanx_generated_tokens_total{@replica}[@window]))"},
    ),
    Panel("Time in the queue", "s", _percentiles("phalanx_queue_seconds_bucket{@replica}")),
    Panel(
        "KV blocks", "short", {"{{state}}": "sum by (state) (phalanx_kv_blocks{@replica})"}, stacked=True,
        description="Cached blocks are free for whoever needs them.",
    ),
    Panel(
        "KV blocks used", _SHARE,
        {
            "{{replica}}": 'sum by (replica) (phalanx_kv_blocks{@replica,state="used"})'
            " / sum by (replica) (phalanx_kv_blocks{@replica})"
        },
    ),
    Panel(
        "Prefix cache hits", _SHARE,
        {
            "{{replica}}": "sum by (replica) (rate(phalanx_prefix_cache_hit_tokens_total{@replica}[@window]))"
            " / sum by (replica) (rate(phalanx_prefix_cache_queried_tokens_total{@replica}[@window]))"
        },
        description="The share of prompt tokens whose KV blocks were there.",
    ),
    Panel(
        "Preemptions", "ops", {"{{replica}}": "sum by (replica) (rate(phalanx_preemptions_total{@replica}[@window]))"}
    ),
    Panel(
        "Mean step by part", "s",
        {
            "{{part}}": "sum by (part) (rate(phalanx_step_seconds_sum{@replica}[@window]))"
            " / sum by (part) (rate(phalanx_step_seconds_count{@replica}[@window]))"
        },
        stacked=True,
    ),
    Panel(
        "p99 of steps by part", "s",
        {
            "{{part}}": "histogram_quantile(0.99,"
            " sum by (part, le) (rate(phalanx_step_seconds_bucket{@replica}[@window])))"
        },
    ),
    Panel(
        "Guessed tokens that were right", _SHARE,
        {
            "{{replica}}": "sum by (replica) (rate(phalanx_draft_tokens_accepted_total{@replica}[@window]))"
            " / sum by (replica) (rate(phalanx_draft_tokens_total{@replica}[@window]))"
        },
        description="Of speculative decoding.",
    ),
)  # fmt: skip

_RANKS = (
    Panel(
        "Time in collectives", _SHARE,
        {
            "{{replica}}/{{rank}}": "sum by (replica, rank)"
            " (rate(phalanx_rank_collective_seconds_total{@replica}[@window]))"
        },
        description="A rank that is slower than the others waits least.",
    ),
    Panel("Device memory", "bytes", {"{{replica}}/{{rank}} {{kind}}": "phalanx_device_memory_bytes{@replica}"}),
    Panel("Loading of weights", "s", {"{{replica}}/{{rank}}": "phalanx_weights_load_seconds{@replica}"}),
)  # fmt: skip

_DEPLOYMENT = (
    Panel("Replicas by state", "short", {"{{state}}": "sum by (state) (phalanx_replicas{@all})"}, stacked=True),
    Panel(
        "Epochs within an hour", "short",
        {"{{replica}}": "sum by (replica) (increase(phalanx_replica_epochs_total{@replica}[1h]))"},
        description="How often a replica was built.",
    ),
    Panel(
        "Failures within an hour", "short",
        {"{{replica}} {{reason}}": "sum by (replica, reason) (increase(phalanx_replica_failures_total{@replica}[1h]))"},
    ),
    Panel("Processes by version", "short", {"{{version}}": "count by (version) (phalanx_build_info{@all})"}),
)  # fmt: skip

ROWS = {
    "Requests": _REQUESTS,
    "Gateways": _GATEWAYS,
    "Replicas": _REPLICAS,
    "Ranks": _RANKS,
    "Deployment": _DEPLOYMENT,
}
