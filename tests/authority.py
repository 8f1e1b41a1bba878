"""Certificates for tests."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """Makes certificates, in files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
        folder.mkdir(exist_ok=True)
        self.file = folder / "ca.pem"
        certificate = self._signed(self._key, self._name, NOW + DAY, x509.BasicConstraints(True, None))
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str, until: datetime.datetime = NOW + DAY, names: Sequence[str] = ()) -> tuple[Path, Path]:
        """The certificate of 127.0.0.1, alias phalanx and `names`, and its key; `name` is its subject and that of the
        files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._signed(key, subject, until, x509.BasicConstraints(False, None), names)
        paths = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return paths

    def _signed(
        self,
        key: ec.EllipticCurvePrivateKey,
        subject: x509.Name,
        until: datetime.datetime,
        constraints: x509.BasicConstraints,
        names: Sequence[str] = (),
    ) -> x509.Certificate:
        named = [x509.DNSName(name) for name in ("phalanx", *names)]
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *named])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).add_extension(address, critical=False)
        builder = builder.not_valid_before(NOW - 2 * DAY).not_valid_after(until)
        return builder.add_extension(constraints, critical=True).sign(self._key, hashes.SHA256())
