"""What a gateway measures: its requests, as their clients see them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cluster.metrics.tenants import TenantLabels
from workers.observation.build_info import BuildInfo

# Why a call was answered with an error.
REFUSALS = (
    "invalid",
    "no_tokenizer",
    "gateway_full",
    "queues_full",
    "over_limit",
    "objective",
    "deadline",
    "draining",
    "no_replica",
)

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120)
_TPOT_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
_DURATION_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)


class GatewayMetrics:
    """In a registry of its own: a process may hold several gateways. Every series whose labels are known beforehand is
    there from the start, as a counter that begins at 1 has no rate."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        tenant, output = ["tenant"], ["tenant", "finish_reason"]
        self._ttft = Histogram(
            "phalanx_request_ttft_seconds", "From a request to an output's first token.", tenant,
            registry=registry, buckets=_TTFT_S,
        )  # fmt: skip
        self._tpot = Histogram(
            "phalanx_request_tpot_seconds", "Mean time between the tokens of a finished output.", tenant,
            registry=registry, buckets=_TPOT_S,
        )  # fmt: skip
        self._duration = Histogram(
            "phalanx_request_duration_seconds", "From a request to an output's end.", output,
            registry=registry, buckets=_DURATION_S,
        )  # fmt: skip
        self._prompt = Counter(
            "phalanx_prompt_tokens", "Prompt tokens of the outputs that have begun.", tenant, registry=registry
        )
        self._cached = Counter(
            "phalanx_cached_prompt_tokens", "Those of them that a replica found in its prefix cache.", tenant,
            registry=registry,
        )  # fmt: skip
        self._completion = Counter(
            "phalanx_completion_tokens", "Tokens of outputs, as clients got them.", tenant, registry=registry
        )
        self._refused = Counter(
            "phalanx_requests_refused", "Calls that were answered with an error.", ["reason"], registry=registry
        )
        self._resumed = Counter(
            "phalanx_streams_resumed", "Outputs that went on after what generated or sent them was lost.", ["cause"],
            registry=registry,
        )  # fmt: skip
        self._objective = Counter(
            "phalanx_objective_requests", "Finished outputs that kept an objective, or did not.",
            ["objective", "kept"], registry=registry,
        )  # fmt: skip
        self.streams = Gauge("phalanx_streams", "Streams that this gateway has open.", registry=registry)
        self.replicas = Gauge(
            "phalanx_gateway_replicas", "Replicas that this gateway can send sequences to.", registry=registry
        )
        registry.register(BuildInfo())
        for reason in REFUSALS:
            self._refused.labels(reason)
        for cause in ("replica", "gateway"):
            self._resumed.labels(cause)
        self._labels = TenantLabels()
        self._tenants: dict[str, TenantMetrics] = {}

    def of(self, tenant: str) -> TenantMetrics:
        """What is counted of a tenant's outputs."""
        label = self._labels.of(tenant)
        if label not in self._tenants:
            self._tenants[label] = TenantMetrics(self, label)
        return self._tenants[label]

    def refused(self, reason: str) -> None:
        """A call was answered with an error; `reason` is one of REFUSALS."""
        self._refused.labels(reason).inc()

    def resumed(self, cause: str, outputs: int = 1) -> None:
        """So many outputs go on, whose "replica" or "gateway" was lost."""
        self._resumed.labels(cause).inc(outputs)

    def objective(self, name: str, kept: bool) -> None:
        """An output has ended, of which "ttft" or "tpot" was promised."""
        self._objective.labels(name, str(kept).lower()).inc()


class TenantMetrics:
    """The series of one tenant, looked up once."""

    def __init__(self, metrics: GatewayMetrics, label: str) -> None:
        self._ttft, self._tpot = metrics._ttft.labels(label), metrics._tpot.labels(label)
        self._prompt, self._cached = metrics._prompt.labels(label), metrics._cached.labels(label)
        self._completion = metrics._completion.labels(label)
        self._duration, self._label = metrics._duration, label

    def began(self, ttft_s: float, prompt_tokens: int, cached_tokens: int) -> None:
        """An output has its first token."""
        self._ttft.observe(ttft_s)
        self._prompt.inc(prompt_tokens)
        self._cached.inc(cached_tokens)

    def tokens(self, count: int) -> None:
        """An output's next tokens go to its client."""
        self._completion.inc(count)

    def ended(self, finish_reason: str, duration_s: float, tpot_s: float | None = None) -> None:
        """An output has ended, on its own or not; `tpot_s` is None where that would say nothing."""
        self._duration.labels(self._label, finish_reason).observe(duration_s)
        if tpot_s is not None:
            self._tpot.observe(tpot_s)
