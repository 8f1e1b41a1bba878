"""The coordinator's endpoint shows its replicas' metrics beside its own, one family each."""

from __future__ import annotations

from prometheus_client import generate_latest

from cluster.metrics.coordinator import CoordinatorMetrics, ReplicaLook
from cluster.metrics.endpoint import MetricsEndpoint
from phalanx.v1 import registry_pb2
from tests.scraped import scrape
from workers.observation.metrics import RankMetrics


class _Engines(RankMetrics):
    """What a rank 0 that has just begun would tell."""

    def __init__(self) -> None: ...

    def collect(self):  # type: ignore[no-untyped-def]
        yield from RankMetrics.describe()


async def test_replicas_are_told_apart_by_a_label() -> None:
    states = registry_pb2.REPLICA_STATE_READY, registry_pb2.REPLICA_STATE_FAILED
    text = generate_latest(_Engines()).decode()
    looks = [
        ReplicaLook(registry_pb2.Replica(id=0, epoch=3, state=states[0]), {"rank_lost": 2}, [text]),
        ReplicaLook(registry_pb2.Replica(id=7, epoch=1, state=states[0]), {}, [text]),
        ReplicaLook(registry_pb2.Replica(id=8, epoch=1, state=states[1]), {"not_built": 1}, []),
    ]

    async def look() -> list[ReplicaLook]:
        return looks

    endpoint = MetricsEndpoint(CoordinatorMetrics(look).registry)
    port = await endpoint.start("127.0.0.1:0")
    try:
        told = await scrape(f"127.0.0.1:{port}")
    finally:
        await endpoint.stop()
    assert told.value("phalanx_replicas", state="ready") == 2
    assert told.value("phalanx_replicas", state="failed") == 1
    assert told.value("phalanx_replica_epochs_total", replica="0") == 3
    assert told.value("phalanx_replica_failures_total", replica="0", reason="rank_lost") == 2
    assert told.value("phalanx_replica_failures_total", replica="7", reason="rank_lost") == 0
    assert {dict(labels).get("replica") for labels in told.labels("phalanx_kv_blocks")} == {"0", "7"}
    assert len(told.labels("phalanx_build_info")) == 3
    assert told.text.count("# TYPE phalanx_kv_blocks ") == 1
    assert told.text.count("# TYPE phalanx_build_info ") == 1
