"""Collectives through torch.distributed: Gloo between hosts, NCCL between GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroupGloo

from workers.collectives.group import CollectiveStalled

_GLANCE = timedelta(seconds=0.2)  # who waits looks this often whether it was told to stop
FRAME = 1024  # int32 words that every message has at least; the first says how many words follow in all


class ProcessGroup:
    """A `Group` over a torch.distributed process group. `members` are the ranks' numbers in the stage, for messages, if
    they are only some of it."""

    replayed = 0

    def __init__(self, group: Any, members: Sequence[int] | None = None) -> None:
        self.rank, self.size = group.rank(), group.size()
        self._group = group
        self._members = members or range(self.size)
        # NCCL's own abort ends what is under way, and a wait with a time would hold the CPU. Gloo's ends nothing.
        self._glance = _GLANCE if isinstance(group, ProcessGroupGloo) else None
        self._aborted = False
        self._left: Any = None
        self.operations = 0
        # NCCL's run beside the CPU, which knows nothing of their times.
        self.waited_s: float | None = None if self._glance is None else 0.0

    def all_reduce(self, x: Tensor) -> Tensor:
        self._wait(self._group.allreduce([x]), "all-reduce")
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        out = x.new_empty(self.size, *x.shape)
        self._wait(self._group.allgather([list(out.unbind(0))], [x.contiguous()]), "all-gather")
        return out

    def broadcast(self, message: Tensor | None) -> Tensor:
        frame = framed(message) if message is not None else torch.empty(FRAME, dtype=torch.int32)
        head, rest = frame[:FRAME], frame[FRAME:]
        self._wait(self._group.broadcast([head]), "broadcast")
        length = int(head[0])
        if length + 1 > FRAME:
            if message is None:
                rest = torch.empty(length + 1 - FRAME, dtype=torch.int32)
            self._wait(self._group.broadcast([rest]), "broadcast")
            head = torch.cat([head, rest])
        return head[1 : length + 1]

    def abort(self) -> None:
        self._aborted = True
        self._group.abort()

    def close(self) -> None:
        if self._left is not None:
            with suppress(RuntimeError):  # it ends by its own deadline; until then it may write to the caller's tensor
                self._left.wait()
        self._group.shutdown()

    def _wait(self, work: Any, operation: str) -> None:
        self.operations += 1
        started = perf_counter()
        try:
            while self._glance is not None and not _ends_within(work, self._glance):
                if self._aborted:
                    self._left = work
                    raise RuntimeError("aborted")
            work.wait()
            if self.waited_s is not None and operation != "broadcast":  # where ranks wait for work
                self.waited_s += perf_counter() - started
        except RuntimeError as error:
            ranks = ", ".join(map(str, self._members))
            raise CollectiveStalled(
                f"{operation} among ranks {ranks} of the stage failed on rank {self._members[self.rank]}: {error}"
            ) from error


def _ends_within(work: Any, time: timedelta) -> bool:
    """Whether the work ends, well or not, within a time."""
    try:
        work.wait(time)
    except RuntimeError:
        return bool(work.is_completed())
    return True


def framed(message: Tensor) -> Tensor:
    """[max(FRAME, n + 1)] int32: the length, then the message, then padding."""
    frame = torch.zeros(max(FRAME, message.numel() + 1), dtype=torch.int32)
    frame[0] = message.numel()
    frame[1 : message.numel() + 1] = message
    return frame
