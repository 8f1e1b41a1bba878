"""Can certificates, keys, tokens and secrets be read and used, by those alone who should, and for how long?"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from cluster.doctor.finding import Finding, failed, ok, warning
from cluster.security.registry_secret import given_secrets
from cluster.security.tokens import read_entries
from cluster.spec import DeploymentSpec
from workers.security import SecurityError
from workers.security.peers import PeerTls
from workers.security.tls import read_authorities, read_pair

_SOON = timedelta(days=30)
_TLS, _FILES = "certificates", "secrets"


def gateway_credentials(spec: DeploymentSpec) -> Iterator[Finding]:
    """What the gateway and the command that serves read, on their machine."""
    if spec.tls is not None:
        yield _pair("the gateway's", spec.tls.certificate, spec.tls.key)
        yield _private(spec.tls.key)
        if spec.tls.client_ca is not None:
            yield _authorities("of clients", spec.tls.client_ca)
    if spec.tokens is not None:
        yield _readable("tokens", spec.tokens, read_entries)
    if spec.registry_secret is not None:
        yield _readable("the registry's secret", spec.registry_secret, given_secrets)
        yield _private(spec.registry_secret)


def node_credentials(tls: PeerTls) -> Iterator[Finding]:
    """What every process of the deployment reads, on every node."""
    yield _pair("internal", tls.certificate, tls.key)
    yield _private(tls.key)
    yield _authorities("within the deployment", tls.ca)


def _pair(whose: str, certificate: Path, key: Path) -> Finding:
    try:
        _, _, leaf = read_pair(certificate, key)
    except SecurityError as error:
        return failed(_TLS, str(error), "docs/security.md tells how to make one and where it is read")
    return _lasting(f"{whose} {certificate}", leaf)


def _authorities(whose: str, path: Path) -> Finding:
    try:
        found = x509.load_pem_x509_certificates(read_authorities(path))
    except SecurityError as error:
        return failed(_TLS, str(error), "give a PEM file with the authority's certificate")
    return _lasting(f"authority {whose} {path}", min(found, key=lambda made: made.not_valid_after_utc))


def _lasting(what: str, certificate: x509.Certificate) -> Finding:
    end = certificate.not_valid_after_utc
    left = end - datetime.now(UTC)
    text = f"{what} is valid until {end:%Y-%m-%d} ({left.days} days)"
    if left <= timedelta():
        return failed(_TLS, f"{what} expired on {end:%Y-%m-%d}", "renew it")
    if left < _SOON:
        return warning(_TLS, text, "renew it: new files at the same paths are read without a restart")
    return ok(_TLS, text)


def _readable(what: str, path: Path, read: Callable[[Path], object]) -> Finding:
    try:
        read(path)
    except SecurityError as error:
        return failed(_FILES, str(error), "docs/security.md tells how to make it")
    return ok(_FILES, f"{what}: {path} can be used")


def _private(path: Path) -> Finding:
    """Whether others than its owner and group may read it; Kubernetes' mounted secrets are read by their group."""
    if path.exists() and stat.S_IMODE(path.stat().st_mode) & stat.S_IROTH:
        return warning(_FILES, f"every user of the machine can read {path}", f"chmod 600 {path}")
    return ok(_FILES, f"{path} is not for everybody to read")
