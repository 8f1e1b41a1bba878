"""From a gateway's answer to the document that operators see."""

from __future__ import annotations

import json
from time import time

from cluster.status.document import Event, Gateway, Latency, Load, Objectives, Rank, Replica, Status
from phalanx.v1 import admin_pb2, registry_pb2, replica_pb2


def status_of(cluster: admin_pb2.GetClusterResponse) -> Status:
    """The state now, of which `cluster` was just received."""
    return Status(
        unix_s=time(),
        deployment=cluster.deployment,
        plan=json.loads(cluster.plan_json) if cluster.plan_json else None,
        gateway=Gateway(active_requests=cluster.active_requests, draining=cluster.draining),
        replicas=[_replica(entry) for entry in cluster.replicas],
        objectives=_objectives(cluster.objectives) if cluster.HasField("objectives") else None,
        recent=_latency(cluster.recent) if cluster.HasField("recent") else None,
        events=[_event(event) for event in cluster.events],
    )


def _replica(entry: admin_pb2.ReplicaStatus) -> Replica:
    replica = entry.replica
    vitals = {rank.rank: rank for rank in entry.vitals}
    return Replica.model_validate(
        {
            "id": replica.id,
            "epoch": replica.epoch,
            "state": registry_pb2.ReplicaState.Name(replica.state).removeprefix("REPLICA_STATE_").lower(),
            "connected": entry.connected,
            "detail": replica.detail,
            "address": replica.address or None,
            "generation": replica.generation,
            "tp": replica.tp or None,
            "pp": replica.pp or None,
            "load": _load(entry.load) if entry.load.total_blocks else None,
            "ranks": [_rank(rank, vitals.get(rank.rank)) for rank in replica.ranks],
        }
    )


def _rank(rank: registry_pb2.RankInfo, vitals: registry_pb2.RankVitals | None) -> Rank:
    return Rank(
        rank=rank.rank,
        node=rank.node,
        pid=rank.pid,
        device=rank.device,
        memory_bytes=None if vitals is None else vitals.memory_bytes,
        memory_total_bytes=None if vitals is None else vitals.memory_total_bytes,
        heard_s=None if vitals is None else round(vitals.heard_seconds, 3),
        doing=None if vitals is None else vitals.doing,
    )


def _load(load: replica_pb2.ReplicaLoad) -> Load:
    return Load(
        running=load.running,
        waiting=load.waiting,
        parked=load.parked,
        kv_blocks=load.total_blocks,
        kv_blocks_used=load.total_blocks - load.free_blocks,
        kv_blocks_cached=load.cached_blocks,
        kv_blocks_free=load.free_blocks - load.cached_blocks,
        steps=load.steps,
        prompt_tokens=load.prompt_tokens,
        cached_prompt_tokens=load.cached_prompt_tokens,
        generated_tokens=load.generated_tokens,
    )


def _objectives(report: admin_pb2.ObjectivesReport) -> Objectives:
    return Objectives(
        ttft_s=report.ttft_seconds or None,
        tpot_s=report.tpot_seconds or None,
        finished=report.finished,
        kept=report.kept,
        shed=report.shed,
    )


def _latency(report: admin_pb2.LatencyReport) -> Latency:
    return Latency(
        outputs=report.outputs,
        ttft_p50_s=report.ttft_p50_seconds,
        ttft_p95_s=report.ttft_p95_seconds,
        tpot_p50_s=report.tpot_p50_seconds,
        tpot_p95_s=report.tpot_p95_seconds,
    )


def _event(event: registry_pb2.Event) -> Event:
    return Event.model_validate(
        {
            "unix_s": event.unix_seconds,
            "kind": registry_pb2.EventKind.Name(event.kind).removeprefix("EVENT_KIND_").lower(),
            "replica": event.replica if event.HasField("replica") else None,
            "epoch": event.epoch if event.HasField("epoch") else None,
            "detail": event.detail,
        }
    )
