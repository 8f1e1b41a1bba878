"""Sums over the GPUs of a host in one launch: every rank reads all the others' parts and adds them itself.

For the few kilobytes of a decode step, the time of a sum is that of its messages, and one way is the least that there
can be ("one-shot", as in NVIDIA's TensorRT-LLM and torch's symmetric memory). Epochs are counted on the device, so that
a sum can be replayed as part of a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.gpu.launch import on_device

_BLOCK = 2048  # numbers of a program
_PROGRAMS = 128  # which wait for those of other ranks; fewer than run at once on a GPU
_SLOTS = tl.constexpr(2)  # a rank may be one sum ahead of another that still reads
_WIDEST = tl.constexpr(4)  # bytes of a number, as sums of several types follow each other
_FLAG_BYTES = 8


@triton.jit
def _one_shot(x, buffers, flags, epochs, stop, count, RANK: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """x [count], of which each program has BLOCK, and a part of every rank's buffer for itself. flags of a rank int64
    [programs, ranks]: the last epoch in which each rank's program had written its numbers."""
    program = tl.program_id(0).to(tl.int64)
    kind = x.dtype.element_ty
    epoch = tl.load(epochs + program) + 1
    place = program * BLOCK + tl.arange(0, BLOCK)
    part = (program * _SLOTS + epoch % _SLOTS) * (BLOCK * _WIDEST)
    number = tl.arange(0, BLOCK)
    real = place < count
    own = tl.multiple_of((tl.load(buffers + RANK) + part).to(tl.pointer_type(kind)), 16)
    tl.store(own + number, tl.load(x + place, mask=real, other=0.0), mask=real)
    tl.debug_barrier()  # all of it is there before anybody is told
    for peer in tl.static_range(SIZE):
        theirs = tl.load(flags + peer).to(tl.pointer_type(tl.int64))
        tl.atomic_xchg(theirs + program * SIZE + RANK, epoch, sem="release", scope="sys")
    mine = tl.load(flags + RANK).to(tl.pointer_type(tl.int64)) + program * SIZE
    for peer in tl.static_range(SIZE):
        seen = tl.atomic_cas(mine + peer, epoch, epoch, sem="acquire", scope="sys")
        stopped = 0
        while (seen < epoch) & (stopped == 0):  # both are read by one thread for all, which must not part here
            seen = tl.atomic_cas(mine + peer, epoch, epoch, sem="acquire", scope="sys")
            stopped = tl.atomic_cas(stop, 0, 0, sem="relaxed", scope="sys")
    tl.debug_barrier()
    total = tl.zeros([BLOCK], tl.float32)
    for peer in tl.static_range(SIZE):
        theirs = tl.multiple_of((tl.load(buffers + peer) + part).to(tl.pointer_type(kind)), 16)
        total += tl.load(theirs + number, mask=real, other=0.0, volatile=True).to(tl.float32)
    tl.store(x + place, total.to(kind), mask=real)
    tl.store(epochs + program, epoch)


def shared_bytes(size: int) -> int:
    """Of each rank's memory that all ranks have to reach; zeros at first."""
    return _flags_at() + _PROGRAMS * size * _FLAG_BYTES


def _flags_at() -> int:
    return _BLOCK * _PROGRAMS * int(_SLOTS.value * _WIDEST.value)


@dataclass(frozen=True)
class OneShot:
    """Of one rank. Every rank sums tensors of the same sizes and types in the same order, of `most` numbers each.

    buffers, flags int64 [size]: where each rank's memory begins, and in it the flags. epochs int64 [programs]. stop
    int32 [1]: not 0, once nobody shall wait any more.
    """

    most: ClassVar[int] = _BLOCK * _PROGRAMS

    rank: int
    buffers: Tensor
    flags: Tensor
    epochs: Tensor
    stop: Tensor

    @classmethod
    def of(cls, rank: int, addresses: Sequence[int], device: torch.device) -> OneShot:
        """With every rank's memory at such an address in this process."""
        buffers = torch.tensor(addresses, dtype=torch.int64, device=device)
        epochs = torch.zeros(_PROGRAMS, dtype=torch.int64, device=device)
        return cls(rank, buffers, buffers + _flags_at(), epochs, torch.zeros(1, dtype=torch.int32, device=device))

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sums x over the ranks, in place, in their order."""
        assert x.is_contiguous()
        with on_device(x):
            _one_shot[triton.cdiv(x.numel(), _BLOCK),](
                x, self.buffers, self.flags, self.epochs, self.stop, x.numel(),
                RANK=self.rank, SIZE=len(self.buffers), BLOCK=_BLOCK, num_warps=8,
            )  # fmt: skip
        return x

    def end(self) -> None:
        """Nobody waits any more, not even in a sum that is under way; its numbers are worth nothing. For any thread."""
        if self.stop.is_cuda:
            with torch.cuda.stream(torch.cuda.Stream(self.stop.device)):  # type: ignore[no-untyped-call]
                self.stop.fill_(1)
        else:
            self.stop.fill_(1)
