"""What a coordinator that comes back has to know, kept in Ray's key-value store: what is wanted and what there is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Self

from pydantic import TypeAdapter
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from cluster.lifecycle.blueprint import Blueprint
from cluster.lifecycle.names import NAMESPACE
from workers.security.secret import new_secret


@dataclass
class ReplicaRecord:
    """The last epoch of a replica; `address` is that of its link once it is ready, `nodes` are those of its ranks."""

    epoch: int
    blueprint: str
    nodes: list[str]
    secret: str
    address: str = ""


@dataclass
class DeploymentRecord:
    """`life` tells deployments apart that had the same name one after the other; `blueprint` is what replicas shall be
    built from, of which `wanted` many; `made` counts those there have ever been, as no number is used again; `registry`
    is where the registry listens, `secrets` what it lets gateways in by. Every change is written at once."""

    deployment: str
    life: str
    detached: bool
    secrets: list[str]
    blueprint: str = ""
    wanted: int = 0
    made: int = 0
    registry: str = ""
    replicas: dict[int, ReplicaRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, deployment: str) -> Self | None:
        """What an earlier coordinator of the deployment wrote, if there was one."""
        stored = _internal_kv_get(_key(deployment), namespace=NAMESPACE)
        return None if stored is None else TypeAdapter(cls).validate_json(stored)

    def begin_epoch(self, replica: int, epoch: int, blueprint: Blueprint, nodes: list[str]) -> str:
        """Notes an epoch that is about to be built; returns its secret."""
        secret = new_secret()
        self.replicas[replica] = ReplicaRecord(epoch, blueprint.to_json(), list(nodes), secret)
        self.write()
        return secret

    def ready(self, replica: int, address: str) -> None:
        self.replicas[replica].address = address
        self.write()

    def forget(self, replica: int) -> None:
        if self.replicas.pop(replica, None) is not None:
            self.write()

    def write(self) -> None:
        _internal_kv_put(_key(self.deployment), TypeAdapter(dict).dump_json(asdict(self)), namespace=NAMESPACE)

    def erase(self) -> None:
        _internal_kv_del(_key(self.deployment), namespace=NAMESPACE)


def _key(deployment: str) -> bytes:
    return f"deployment:{deployment}".encode()
