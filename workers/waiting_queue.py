"""Sequences that wait for a place in the running batch, in the order they are to be served."""

from __future__ import annotations

import heapq

from workers.sequence import Sequence


class WaitingQueue:
    """A heap whose cancelled entries stay until they come up, so that no operation looks at all of it."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def push(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (sequence.rank, sequence))
        self._live += 1

    def cancelled(self) -> None:
        """One of the waiting sequences has just been marked as cancelled."""
        self._live -= 1
        if 2 * self._live < len(self._heap):
            # At most as many dead entries as live ones keep their memory.
            self._heap = [entry for entry in self._heap if not entry[1].cancelled]
            heapq.heapify(self._heap)

    def first(self) -> Sequence:
        """The next to be served; the queue must not be empty."""
        while self._heap[0][1].cancelled:
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def pop(self) -> Sequence:
        """Takes out what `first` returns."""
        sequence = self.first()
        heapq.heappop(self._heap)
        self._live -= 1
        return sequence
