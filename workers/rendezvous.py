"""How the ranks of an epoch find each other over a store that anyone who reaches it may write to.

torch's TCPStore asks nobody who they are, and neither do the sockets of Gloo and NCCL. So every value that we or Gloo
put into the store is signed with the epoch's secret, and where ranks have connected, each proves to the others that it
knows it. NCCL, some of whose threads want a store of torch's own, leaves its values unsigned.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from workers.security.secret import derived

_SIGNATURE = hashlib.sha256().digest_size


class Impostor(RuntimeError):
    """Something in the rendezvous is not by a rank of this epoch."""


class SignedStore(Store):
    """A view of `store` in which a value counts only if it was set under that very key by who knows `secret`.

    Keys are under a prefix of the secret's own, so that lives of a replica do not meet.
    """

    def __init__(self, store: Store, secret: str) -> None:
        super().__init__()
        self._store = store
        self._prefix = derived(secret, "keys")
        self._signing = derived(secret, "signatures").encode()

    def set(self, key: str, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else bytes(value)
        self._store.set(self._at(key), self._signature(key, content) + content)  # type: ignore[arg-type]

    def get(self, key: str) -> bytes:
        """Waits for it.

        Raises:
            Impostor: it was set by who does not know the secret.
        """
        signed = self._store.get(self._at(key))
        signature, content = signed[:_SIGNATURE], signed[_SIGNATURE:]
        if not hmac.compare_digest(signature, self._signature(key, content)):
            raise Impostor(
                f"{key} in the rendezvous store is not by a rank of this epoch: a stranger reaches the node's ports; "
                "keep the cluster on a network of its own"
            )
        return content

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        places = [self._at(key) for key in keys]
        if timeout is None:
            self._store.wait(places)
        else:
            self._store.wait(places, timeout)

    def check(self, keys: list[str]) -> bool:
        return self._store.check([self._at(key) for key in keys])

    def delete_key(self, key: str) -> bool:
        return self._store.delete_key(self._at(key))

    def set_timeout(self, timeout: timedelta) -> None:
        self._store.set_timeout(timeout)

    def has_extended_api(self) -> bool:
        return False

    def _at(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    def _signature(self, key: str, content: bytes) -> bytes:
        return hmac.new(self._signing, key.encode() + b"\0" + content, hashlib.sha256).digest()


def prove(group: Any, secret: str, device: torch.device) -> None:
    """Every rank of a process group shows that it knows `secret`, by an answer to what the others have just made up.
    The group speaks of tensors on `device`.

    Raises:
        Impostor: one does not.
    """
    nonces = _gathered(group, secrets.token_bytes(_SIGNATURE), device)
    for rank, answer in enumerate(_gathered(group, _answer(secret, group.rank(), nonces), device)):
        if not hmac.compare_digest(answer, _answer(secret, rank, nonces)):
            raise Impostor(
                f"who connected as rank {rank} of a process group is not of this epoch: a stranger reaches the node's "
                "ports; keep the cluster on a network of its own"
            )


def _answer(secret: str, rank: int, nonces: list[bytes]) -> bytes:
    return hmac.new(derived(secret, f"rank {rank}").encode(), b"".join(nonces), hashlib.sha256).digest()


def _gathered(group: Any, mine: bytes, device: torch.device) -> list[bytes]:
    """What each rank has, all of _SIGNATURE bytes."""
    sent = torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(device)
    received: list[Tensor] = [torch.empty_like(sent) for _ in range(group.size())]
    group.allgather([received], [sent]).wait()
    return [bytes(part.tolist()) for part in received]
