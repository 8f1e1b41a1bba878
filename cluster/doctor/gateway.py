"""The checks of the machine where `phalanx serve` will run, and the first gateway with it."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.doctor.credentials import gateway_credentials
from cluster.doctor.finding import Finding, failed, ok
from cluster.doctor.model import tokenizer
from cluster.doctor.open_files import open_files
from cluster.doctor.ports import port_finding
from cluster.models import ModelError
from cluster.security.exposure import check_exposure
from cluster.spec import DeploymentSpec
from workers.security import SecurityError


def gateway_findings(spec: DeploymentSpec) -> Iterator[Finding]:
    host, _, port = spec.listen.rpartition(":")
    remedy = "end what listens there, or choose another port: listen in the spec"
    yield port_finding(host.strip("[]"), int(port), "the gateway", remedy)
    yield _exposure(spec)
    yield open_files(connections=spec.max_sequences)
    yield from gateway_credentials(spec)
    try:
        yield tokenizer(spec.model)
    except ModelError as error:
        yield failed("tokenizer", str(error), "put the model, or its tokenizer alone, on the gateway's machine")


def _exposure(spec: DeploymentSpec) -> Finding:
    certified = spec.tls is not None and spec.tls.client_ca is not None
    try:
        check_exposure(spec.listen, spec.tls is not None, spec.tokens is not None or certified, spec.insecure)
    except SecurityError as error:
        return failed("exposure", str(error), "docs/security.md tells how to make certificates and tokens")
    return ok("exposure", f"{spec.listen} may be listened on as the spec protects it")
