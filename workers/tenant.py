"""Who shares a replica, and how much each has had of it.

Fair sharing by tokens, after the virtual token counters of Sheng et al., "Fairness in Serving Large Language Models"
(OSDI 2024): serving a tenant raises its counter by the tokens' cost over its weight, and whoever waits with the lowest
counter is served next. A tenant that begins to wait is lifted to the lowest counter of those who wait already (to where
the last one was served, when nobody waits), so that idle time is no credit.

While two tenants wait without pause, their counters differ by no more than what a replica can hold for one of them: the
cost of a step's prompt tokens and of the tokens that its running sequences may still get, over its weight.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

# A position that is computed costs 1, a token that is drawn 1 more: a generated token counts as two of a prompt. On the
# machine of benchmarks/README.md it takes 1.3 times as long in a batch of 32, and 20 times as long alone.
DRAWN = 1.0

_KNOWN = 4096  # tenants that are remembered; those that did nothing for longest are forgotten first


@dataclass(eq=False, slots=True)
class Tenant:
    """`counter` is the cost of what it was served over its weight; `root` begins its chain of cached prefixes.

    `sequences` counts all it has, `running` those in the running batch, `waiting` those that wait for a place there.
    """

    name: str
    root: int
    weight: float = 1.0
    counter: float = 0.0
    sequences: int = 0
    running: int = 0
    waiting: int = 0


class Tenants:
    """All there are, by name; the nameless one is for requests of callers who are not told apart."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Tenant] = OrderedDict()
        self._roots = 0

    def get(self, name: str, weight: float) -> Tenant:
        """The tenant of this name, whose weight is `weight` from now on."""
        tenant = self._known.get(name)
        if tenant is None:
            self._forget_idle()
            # Roots are negative, so none is ever the identity of a block.
            self._roots -= 1
            tenant = self._known[name] = Tenant(name, self._roots)
        self._known.move_to_end(name)
        tenant.weight = weight
        return tenant

    def _forget_idle(self) -> None:
        for name in list(islice(self._known, max(0, len(self._known) + 1 - _KNOWN))):
            if not self._known[name].sequences:
                del self._known[name]
