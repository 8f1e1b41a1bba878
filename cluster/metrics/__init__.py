"""What Prometheus is told of gateways and of the coordinator with its replicas. docs/metrics.md lists all of it."""

from prometheus_client import disable_created_metrics

# A second series for each of a counter's, which says when it began, is of no use to Prometheus.
disable_created_metrics()  # type: ignore[no-untyped-call]
