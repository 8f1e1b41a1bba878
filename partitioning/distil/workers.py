"""Processes that train one student: each computes some batches of a step, and all take the same step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, distributed

Batch = list[int]


@dataclass(frozen=True)
class Workers:
    """This process among those of torch.distributed's default group; one alone needs no group."""

    rank: int = 0
    size: int = 1

    def own(self, batches: Sequence[Batch]) -> Iterable[tuple[int, Batch]]:
        """Those of a step that this process computes, with their numbers."""
        return list(enumerate(batches))[self.rank :: self.size]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each by its sum over all processes, which is the same to the bit in all of them."""
        if self.size > 1:
            works = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in works:
                work.wait()


ALONE = Workers()
