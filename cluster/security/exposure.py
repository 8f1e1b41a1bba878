"""What a gateway may listen on: the network only when callers are known and cannot be listened to."""

from __future__ import annotations

import ipaddress

from cluster.security import SecurityError


def check_exposure(listen: str, encrypted: bool, authenticated: bool, insecure: bool) -> None:
    """Raises SecurityError: others than this machine's users could reach `listen` (host:port) without showing who they
    are, or could be overheard, and `insecure` does not say that this is meant."""
    if insecure or is_loopback(listen) or (encrypted and authenticated):
        return
    missing = {
        (False, False): "without TLS and tokens anyone who reaches it could use the model and read what others say",
        (True, False): "without tokens (or certificates of clients) anyone who reaches it could use the model",
        (False, True): "without TLS anyone on the way could read tokens, prompts and answers",
    }[encrypted, authenticated]
    raise SecurityError(
        f"the gateway would listen on {listen}, and {missing}. Give a certificate and a tokens file "
        "(docs/security.md tells how), listen on 127.0.0.1, or say --insecure (in a spec, insecure: true) where the "
        "network itself keeps others out"
    )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address` (host:port)."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
