"""TLS for ports of ours: certificates checked when they are read, and read again when their files change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from pydantic import ConfigDict

from workers.security import SecurityError
from workers.security.files import read_file
from workers.security.reload import Reloaded


@dataclass(frozen=True)
class ServerTls:
    """PEM files: the port's certificate (with the chain up to its authority), its key, and, if clients have to show
    certificates of their own, the authorities that may vouch for these."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class _Pem:
    certificate: bytes
    key: bytes
    client_ca: bytes | None


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Credentials whose new connections get what is in the files then; those there are stay as they are.

    Raises:
        SecurityError: a file is missing, unreadable or no PEM, the key is another certificate's, or its time is over.
    """
    files = [path for path in (tls.certificate, tls.key, tls.client_ca) if path is not None]
    pem = Reloaded(files, lambda: _read(tls))
    served = pem.current

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        if pem.current is served:
            return None
        served = pem.current
        return _configuration(served)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(served),
        renewed,  # type: ignore[arg-type]  # None says that nothing has changed
        require_client_authentication=tls.client_ca is not None,
    )


def read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes, x509.Certificate]:
    """A certificate chain and its key as PEM, and the first certificate of the chain. Raises SecurityError."""
    chain_pem, key_pem = read_file(certificate, "TLS certificate"), read_file(key, "TLS key")
    leaf = _certificates(chain_pem, certificate)[0]
    try:
        private = load_pem_private_key(key_pem, password=None)
    except TypeError:
        raise SecurityError(
            f"TLS key: {key} is encrypted; write it without a passphrase, readable by its user"
        ) from None
    except ValueError:
        raise SecurityError(f"TLS key: {key} holds no private key in PEM") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise SecurityError(
            f"TLS: {key} is not the key of the first certificate in {certificate}; give the one it was made with"
        )
    now = datetime.now(UTC)
    if now > leaf.not_valid_after_utc:
        raise SecurityError(
            f"TLS certificate: {certificate} expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; renew it"
        )
    if now < leaf.not_valid_before_utc:
        raise SecurityError(
            f"TLS certificate: {certificate} is valid only from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; "
            "is the clock right?"
        )
    return chain_pem, key_pem, leaf


def read_authorities(path: Path) -> bytes:
    """Certificates that vouch for others, as PEM. Raises SecurityError."""
    pem = read_file(path, "TLS authorities")
    _certificates(pem, path)
    return pem


def _read(tls: ServerTls) -> _Pem:
    certificate, key, _ = read_pair(tls.certificate, tls.key)
    return _Pem(certificate, key, None if tls.client_ca is None else read_authorities(tls.client_ca))


def _configuration(pem: _Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.client_ca)


def _certificates(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise SecurityError(f"TLS: {path} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from None
