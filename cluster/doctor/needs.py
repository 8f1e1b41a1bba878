"""What a deployment asks of each node, as its plan tells."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from cluster.lifecycle.blueprint import Blueprint
from partitioning.costs import cache_bytes
from partitioning.plan import Plan, RankPlan
from workers.security.peers import PeerTls

# Ranks of one host exchange through files in memory: half a megabyte of a stage's group and up to 3.3 MB of channels
# for each of them (workers/parallel.py). On GPUs NCCL does the same, in some tens of megabytes.
_SHARED_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}


@dataclass(frozen=True)
class Needs:
    """Of one node. `address` is where others reach it; `model` a path; `memory_bytes` and `shared_bytes` are what all
    of its ranks take of the host, `gpu_bytes` what the largest takes of its GPU; `gpus` are wanted, or, where it is
    None, as many as there are. `registry_port` is one that the coordinator may open there."""

    address: str = "127.0.0.1"
    model: str | None = None
    memory_bytes: int = 0
    shared_bytes: int = 0
    gpus: int | None = None
    gpu_bytes: int = 0
    native: bool = True
    internal_tls: PeerTls | None = None
    registry_port: int = 0


@dataclass(frozen=True)
class Share:
    """What the ranks on one node take of it."""

    ranks: int = 0
    memory_bytes: int = 0
    shared_bytes: int = 0
    gpus: int = 0
    gpu_bytes: int = 0


def shares(blueprint: Blueprint) -> dict[str, Share]:
    """By the node's name, what all replicas' ranks take."""
    plan = blueprint.plan
    placed: dict[str, list[RankPlan]] = defaultdict(list)
    for devices in plan.replica_devices:
        for rank, (node, _) in zip(plan.ranks, devices, strict=True):
            placed[node].append(rank)
    return {node: _share(plan, ranks) for node, ranks in placed.items()}


def _share(plan: Plan, ranks: list[RankPlan]) -> Share:
    on_gpus = [rank for rank in ranks if rank.device.startswith("cuda")]
    kind = "cuda" if on_gpus else "cpu"
    return Share(
        ranks=len(ranks),
        memory_bytes=sum(_bytes(plan, rank) for rank in ranks if rank not in on_gpus),
        shared_bytes=len(ranks) * _SHARED_BYTES[kind],
        gpus=len(on_gpus),
        gpu_bytes=max((_bytes(plan, rank) for rank in on_gpus), default=0),
    )


def _bytes(plan: Plan, rank: RankPlan) -> int:
    """Of weights and KV cache."""
    token = (
        2 * len(rank.layers) * len(rank.kv_heads) * cache_bytes(plan.dtype, plan.kv_cache).vector(plan.model.head_dim)
    )
    return rank.weight_bytes + plan.kv_blocks * plan.kv_block_size * token
