"""What operators see of a deployment: the document, the events that lead up to it, and the screen."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster.gateway.kept import Kept
from cluster.lifecycle.events import EventLog
from cluster.status.document import Status
from cluster.status.rates import rates
from cluster.status.reading import status_of
from cluster.status.schema import FILE, schema_text
from cluster.status.screen import frame
from phalanx.v1 import admin_pb2, registry_pb2, replica_pb2

_READY, _FAILED = registry_pb2.REPLICA_STATE_READY, registry_pb2.REPLICA_STATE_FAILED
_STARTING, _DRAINING = registry_pb2.REPLICA_STATE_STARTING, registry_pb2.REPLICA_STATE_DRAINING


def _status(replicas: int, ranks: int, generated: int = 0, events: int = 0) -> Status:
    made = [
        admin_pb2.ReplicaStatus(
            replica=registry_pb2.Replica(
                id=number,
                epoch=1,
                state=_READY,
                detail="ready after 12.3 s, 1,234 MB read",
                tp=ranks,
                pp=1,
                ranks=[
                    registry_pb2.RankInfo(rank=rank, node=f"node-{rank}.example.org", pid=4000, device="cpu")
                    for rank in range(ranks)
                ],
            ),
            connected=True,
            load=replica_pb2.ReplicaLoad(
                running=3, free_blocks=40, cached_blocks=15, total_blocks=100, generated_tokens=generated
            ),
            vitals=[registry_pb2.RankVitals(rank=0, heard_seconds=0.5, memory_bytes=10**9, memory_total_bytes=10**10)],
        )
        for number in range(replicas)
    ]
    happened = [
        registry_pb2.Event(
            unix_seconds=1e9, kind=registry_pb2.EVENT_KIND_EPOCH_ENDED, replica=0, epoch=1, detail=f"x{n}"
        )
        for n in range(events)
    ]
    return status_of(admin_pb2.GetClusterResponse(deployment="test", replicas=made, events=happened))


def _drawn(status: Status, width: int, height: int | None = None) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    return ["".join(s.text for s in line) for line in console.render_lines(frame(status, {}, "host:1", width, height))]


def test_the_schema_in_the_documentation_is_that_of_the_document() -> None:
    assert FILE.read_text(encoding="utf-8") == schema_text(), "stale: python -m cluster.status.schema"


def test_blocks_are_used_cached_or_free_and_what_is_unknown_is_null() -> None:
    (replica,) = _status(1, 2).replicas
    assert replica.load is not None
    load = replica.load
    assert (load.kv_blocks_used, load.kv_blocks_cached, load.kv_blocks_free) == (60, 15, 25)
    assert [rank.memory_bytes for rank in replica.ranks] == [10**9, None]
    assert [rank.heard_s for rank in replica.ranks] == [0.5, None]


def test_rates_are_differences_within_an_epoch() -> None:
    before, now = _status(2, 1, generated=100), _status(2, 1, generated=400)
    before = before.model_copy(update={"unix_s": now.unix_s - 2})
    assert [rate.generated for rate in rates(before, now).values()] == [150.0, 150.0]
    reborn = now.replicas[0].model_copy(update={"epoch": 2})
    assert set(rates(before, now.model_copy(update={"replicas": [reborn, now.replicas[1]]}))) == {1}


@pytest.mark.parametrize(("width", "height"), [(40, 24), (80, 24), (200, 20), (100, 60)])
def test_a_frame_fits_the_screen_and_shows_what_is_most_important(width: int, height: int) -> None:
    lines = _drawn(_status(40, 8, events=50), width, height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    assert "40 of 40 replicas ready" in text
    assert "used 2,400 cached 600 free 1,000" in text
    assert "0.5 s" in text
    assert "x49" in text
    assert "replica 0 epoch 1 ended" in text


def test_an_event_is_a_change_of_a_replica() -> None:
    log = EventLog()

    def become(state: registry_pb2.ReplicaState, epoch: int, detail: str = "") -> None:
        log.follow([registry_pb2.Replica(id=7, epoch=epoch, state=state, detail=detail)])

    become(_STARTING, 1, "looking for room")
    become(_STARTING, 1, "loading the weights")
    become(_READY, 1)
    become(_FAILED, 1, "rank 3 died " + "x" * 9999)
    become(_STARTING, 2)
    become(_DRAINING, 2)
    log.follow([])
    kinds = [registry_pb2.EventKind.Name(event.kind).removeprefix("EVENT_KIND_") for event in log.events]
    assert kinds == [
        "EPOCH_STARTED", "EPOCH_READY", "EPOCH_ENDED", "EPOCH_STARTED", "REPLICA_DRAINING", "REPLICA_GONE",
    ]  # fmt: skip
    assert log.events[2].detail.startswith("rank 3 died")
    assert len(log.events[2].detail) <= 500
    for number in range(1000):
        log.note(registry_pb2.EVENT_KIND_SCALE, str(number))
    assert len(log.events) < 100
    assert log.events[-1].detail == "999"


def test_the_gateway_tells_how_quick_its_last_answers_were() -> None:
    kept = Kept()
    assert kept.recent() is None
    for number in range(1, 101):
        kept.finished(number / 100, number / 100 + 1.0, tokens=number)
    recent = kept.recent()
    assert recent is not None
    assert recent.outputs == 100
    assert (recent.ttft_p50_seconds, recent.ttft_p95_seconds) == (0.5, 0.95)
    # The one of a single token has no time between tokens.
    assert recent.tpot_p50_seconds == pytest.approx(1 / 50)
