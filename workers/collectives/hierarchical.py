"""Collectives of a stage that spans hosts, some of which hold several of its ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from workers.collectives.group import CollectiveStalled
from workers.collectives.process_group import ProcessGroup
from workers.collectives.shared_memory import SharedMemoryGroup


class HierarchicalGroup:
    """A `Group` in which each host meets in shared memory, and only the first rank of each, its leader, meets others.

    Sums are those of the hosts' sums, in an order that depends on the ranks' hosts but on nothing else.

    Args:
        rank: this one's.
        hosts: the ranks of each, ascending; hosts in the order of their leaders, so rank 0 leads the first one.
        here: the ranks of this host; None if there is but one.
        between: the leaders, in the order of `hosts`; None on other ranks.
    """

    replayed = 0

    def __init__(
        self,
        rank: int,
        hosts: Sequence[Sequence[int]],
        here: SharedMemoryGroup | None,
        between: ProcessGroup | None,
    ) -> None:
        self.rank, self.size = rank, sum(map(len, hosts))
        self._hosts, self._here, self._between = hosts, here, between

    @property
    def operations(self) -> int:
        group = self._here or self._between
        return 0 if group is None else group.operations

    @property
    def waited_s(self) -> float:
        return sum((group.waited_s or 0.0) for group in (self._here, self._between) if group is not None)

    def all_reduce(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x
        if self._here is not None:
            self._here.all_reduce(x)
        if self._between is not None:
            self._between.all_reduce(x)
        return self._handed_out(x)

    def all_gather(self, x: Tensor) -> Tensor:
        out = x.new_empty(self.size, *x.shape)
        if not x.numel():
            return out
        mine = x.contiguous().view(-1).view(torch.uint8)
        parts = mine.unsqueeze(0) if self._here is None else self._here.all_gather(mine)  # [ranks of the host, bytes]
        if self._between is not None:
            most = max(map(len, self._hosts))
            padded = parts.new_zeros(most, len(mine))
            padded[: len(parts)] = parts
            rows = out.view(self.size, -1).view(torch.uint8)
            for ranks, gathered in zip(self._hosts, self._between.all_gather(padded), strict=True):
                rows[list(ranks)] = gathered[: len(ranks)]
        return self._handed_out(out)

    def broadcast(self, message: Tensor | None) -> Tensor:
        if self._between is not None:
            message = self._between.broadcast(message)
        if self._here is not None:
            with self._naming_leaders():
                message = self._here.broadcast(message)
        assert message is not None
        return message

    def abort(self) -> None:
        for group in (self._here, self._between):
            if group is not None:
                group.abort()

    def close(self) -> None:
        for group in (self._here, self._between):
            if group is not None:
                group.close()

    def _handed_out(self, x: Tensor) -> Tensor:
        """The leader's x on all ranks of its host."""
        if self._here is not None:
            with self._naming_leaders():
                self._here.hand_out(x)
        return x

    @contextmanager
    def _naming_leaders(self) -> Iterator[None]:
        """Who waits in vain for its leader learns for whom that may be waiting."""
        try:
            yield
        except CollectiveStalled as error:
            leaders = ", ".join(str(ranks[0]) for ranks in self._hosts)
            raise CollectiveStalled(f"{error}; the hosts' leaders, ranks {leaders}, wait for each other") from error
