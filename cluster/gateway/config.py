"""What a gateway is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from workers.security.peers import PeerTls
from workers.security.tls import ServerTls


@dataclass(frozen=True)
class GatewayConfig:
    """`listen` is host:port (port 0 for any), `registry` the coordinator's host:port, or several of them with commas,
    `registry_secret` what is shown there, or a file with it. `internal_tls` is for what it calls within the cluster.

    `max_sequences` are generated at once, more are told to come again. A stream whose replica is lost waits up to
    `recovery_s` seconds for another, and one that its client does not read ends after `send_timeout_s`. `tokenizer` is
    a checkpoint to take the tokenizer from, when the model's own path is not visible on this machine. `probe_listen` is
    a second host:port, for the health service alone, `traces` the http:// address of a collector of spans.

    `metrics_address` is a further host:port, for Prometheus.

    `tls`, `tokens` (a file) and `insecure` say who may reach it and how: see `PublicPort`.
    """

    listen: str
    registry: str
    registry_secret: str | Path = field(repr=False)
    max_sequences: int = 1024
    recovery_s: float = 120.0
    send_timeout_s: float = 600.0
    tokenizer: str | None = None
    probe_listen: str | None = None
    tls: ServerTls | None = None
    tokens: Path | None = None
    insecure: bool = False
    internal_tls: PeerTls | None = None
    metrics_address: str | None = None
    traces: str | None = None
