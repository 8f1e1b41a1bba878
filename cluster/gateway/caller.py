"""Who makes a call: the tenant whose share of the cluster it uses."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from cluster.gateway.allowance import Allowance, Quota


@dataclass(frozen=True)
class Caller:
    """`tenant` is empty where callers are not told apart; `weight` is its share of the cluster relative to others,
    `allowance` what the token that it has shown may use."""

    tenant: str = ""
    weight: float = 1.0
    allowance: Allowance = field(default_factory=lambda: Allowance(Quota()), compare=False)


ANYBODY: Caller = Caller()

# Set for every call by the server's authentication; the services read it.
CALLER: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)
