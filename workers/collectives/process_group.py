"""Collectives through torch.distributed: Gloo between hosts, NCCL between GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workers.collectives.group import CollectiveStalled

FRAME = 1024  # int32 words that every message has at least; the first says how many words follow in all


class ProcessGroup:
    """A `Group` over a torch.distributed process group."""

    def __init__(self, group: Any) -> None:
        self.rank, self.size = group.rank(), group.size()
        self._group = group

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
        self._group.abort()

    def close(self) -> None:
        self._group.shutdown()

    def _wait(self, work: Any, operation: str) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise CollectiveStalled(
                f"{operation} among {self.size} ranks failed on rank {self.rank}: {error}"
            ) from error


def framed(message: Tensor) -> Tensor:
    """[max(FRAME, n + 1)] int32: the length, then the message, then padding."""
    frame = torch.zeros(max(FRAME, message.numel() + 1), dtype=torch.int32)
    frame[0] = message.numel()
    frame[1 : message.numel() + 1] = message
    return frame
