"""Who makes a call: the tenant whose share of the cluster it uses."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """`tenant` is empty where callers are not told apart; `weight` is its share of the cluster relative to others."""

    tenant: str = ""
    weight: float = 1.0


ANYBODY = Caller()

# Set for every call by the server's authentication; the services read it.
CALLER: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)
