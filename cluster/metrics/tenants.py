"""Names of tenants as labels: few enough for Prometheus, which keeps a series for each for as long as it remembers."""

from __future__ import annotations

ANONYMOUS = "anonymous"  # callers who are not told apart: an empty label would be the same as none
OTHER = "other"


class TenantLabels:
    """The first `most` tenants have labels of their own, all others share one."""

    def __init__(self, most: int = 50) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, tenant: str) -> str:
        label = tenant or ANONYMOUS
        if label not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(label)
        return label
