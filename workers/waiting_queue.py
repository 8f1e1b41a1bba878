"""Sequences that wait for a place in the running batch, in the order they are to be served."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from workers.sequence import Rank, Sequence
from workers.tenant import Tenant


@dataclass(eq=False, slots=True)
class _Line:
    """A tenant's own queue: a heap that keeps entries of sequences which have left until they come up."""

    tenant: Tenant
    heap: list[tuple[Rank, Sequence]] = field(default_factory=list)

    def first(self) -> Sequence | None:
        while self.heap:
            sequence = self.heap[0][1]
            if sequence.waiting:
                return sequence
            heapq.heappop(self.heap)
            sequence.queued = False
        return None

    def prune(self) -> None:
        """At most as many entries of others as of waiting sequences keep their memory."""
        if 2 * self.tenant.waiting >= len(self.heap):
            return
        for _, sequence in self.heap:
            sequence.queued = sequence.waiting
        self.heap = [entry for entry in self.heap if entry[1].waiting]
        heapq.heapify(self.heap)


class WaitingQueue:
    """Serves the tenant with the lowest counter, and each tenant's sequences by their rank.

    No operation looks at all that wait. Counters only grow, so the heap of lines is put right where a line comes up
    with a counter that has grown since.
    """

    def __init__(self) -> None:
        self._lines: dict[Tenant, _Line] = {}
        self._order: list[tuple[float, int, _Line]] = []  # by counter; of equals, who began to wait first
        self._begun = 0
        self._level = 0.0
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def push(self, sequence: Sequence) -> None:
        tenant = sequence.tenant
        if not tenant.waiting:
            first = self.first()
            tenant.counter = max(tenant.counter, self._level if first is None else first.tenant.counter)
        line = self._lines.get(tenant)
        if line is None:
            self._begun += 1
            line = self._lines[tenant] = _Line(tenant)
            heapq.heappush(self._order, (tenant.counter, self._begun, line))
        sequence.waiting = True
        if not sequence.queued:
            sequence.queued = True
            heapq.heappush(line.heap, (sequence.rank, sequence))
        tenant.waiting += 1
        self._live += 1

    def remove(self, sequence: Sequence) -> None:
        """Takes out a sequence that waits, wherever it is."""
        sequence.waiting = False
        sequence.tenant.waiting -= 1
        self._live -= 1
        self._lines[sequence.tenant].prune()

    def first(self) -> Sequence | None:
        """The next to be served; None when nothing waits."""
        while self._order:
            counter, begun, line = self._order[0]
            sequence = line.first()
            if sequence is None:
                heapq.heappop(self._order)
                del self._lines[line.tenant]
            elif counter < line.tenant.counter:
                heapq.heapreplace(self._order, (line.tenant.counter, begun, line))
            else:
                return sequence
        return None

    def pop(self) -> Sequence:
        """Takes out what `first` returns; there has to be one."""
        sequence = self.first()
        assert sequence is not None
        self._level = max(self._level, sequence.tenant.counter)
        heapq.heappop(self._lines[sequence.tenant].heap)
        sequence.queued = False
        self.remove(sequence)
        return sequence
