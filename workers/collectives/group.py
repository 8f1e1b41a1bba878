"""What a layer may ask of the ranks of its stage."""

from __future__ import annotations

import sys
from typing import Protocol

from torch import Tensor


class CollectiveStalled(RuntimeError):
    """A peer did not arrive at a collective within the deadline: it is dead, or far behind."""


class Group(Protocol):
    """The ranks of one stage. Every rank calls the same operations in the same order.

    Results are bitwise the same on every rank, so replicated activations never drift apart.
    """

    rank: int
    size: int

    @property
    def operations(self) -> int:
        """How many this rank has begun, give or take one. May be asked from any thread."""
        ...

    @property
    def waited_s(self) -> float | None:
        """Seconds this rank has waited for others in sums and gathers, as those wait who come early; None where that is
        not measured. May be asked from any thread."""
        ...

    @property
    def replayed(self) -> int:
        """Up to how many numbers a sum may be recorded in a CUDA graph and replayed."""
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place; returns x. Any contiguous float tensor."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """[size, *x.shape]: every rank's x, in rank order. Shapes and types agree on all ranks."""
        ...

    def broadcast(self, message: Tensor | None) -> Tensor:
        """Rank 0's int32 vector (of any length) on every rank; the others pass None."""
        ...

    def abort(self) -> None:
        """Makes an operation under way in another thread fail with CollectiveStalled: a peer is known to be dead."""
        ...

    def close(self) -> None: ...


class SoloGroup:
    """A stage of one rank."""

    rank = 0
    size = 1
    operations = 0
    waited_s = 0.0
    replayed = sys.maxsize

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    def broadcast(self, message: Tensor | None) -> Tensor:
        assert message is not None
        return message

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass
