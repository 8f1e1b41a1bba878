"""What the gateway's calls within the cluster have in common."""

from __future__ import annotations

# A machine that vanished without a word is noticed after ten seconds; a process that died, at once.
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The cluster has a network of its own.
    ("grpc.enable_http_proxy", 0),
]
