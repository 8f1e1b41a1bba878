"""All checks of one node, by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.doctor.credentials import node_credentials
from cluster.doctor.finding import Finding
from cluster.doctor.gpus import gpus
from cluster.doctor.memory import memory
from cluster.doctor.model import fingerprint, model
from cluster.doctor.needs import Needs
from cluster.doctor.open_files import open_files
from cluster.doctor.ports import node_ports
from cluster.doctor.processor import native_engine, processor
from cluster.doctor.shared_memory import shared_memory
from cluster.doctor.versions import own_findings, versions

_LEAST_SHARED_BYTES = 64 << 20  # where no plan says what is needed


@dataclass(frozen=True)
class NodeReport:
    """`versions` and the model's `fingerprint` are for comparison with other nodes."""

    findings: list[Finding]
    versions: dict[str, str]
    fingerprint: str | None = None


def examine(needs: Needs) -> NodeReport:
    """Takes a second; a minute where the native engine has to be compiled."""
    found = versions()
    findings = [*own_findings(found), *_findings(needs)]
    return NodeReport(findings, found, None if needs.model is None else fingerprint(needs.model))


def _findings(needs: Needs) -> Iterator[Finding]:
    yield processor()
    if needs.native:
        yield native_engine()
    yield gpus(needs.gpus, needs.gpu_bytes)
    yield memory(needs.memory_bytes)
    yield shared_memory(needs.shared_bytes or _LEAST_SHARED_BYTES)
    yield open_files()
    yield from node_ports(needs.address, needs.registry_port)
    if needs.model is not None:
        yield model(needs.model)
    if needs.internal_tls is not None:
        yield from node_credentials(needs.internal_tls)
