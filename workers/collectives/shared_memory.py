"""Collectives between processes of one host, through memory that they share: see csrc/collectives.h.

A loopback TCP all-reduce of one token's hidden state costs a good part of a millisecond; through shared memory it
costs some microseconds, and a token needs two of them a layer.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from workers.collectives.group import CollectiveStalled
from workers.collectives.shared_file import open_file
from workers.native.collectives import Address, Stall, native_collectives

SLOT_BYTES = 256 << 10  # larger exchanges go in pieces, which also keeps them in the cache


def group_bytes(size: int, slot_bytes: int = SLOT_BYTES) -> int:
    """Of the file for a group of `size` ranks."""
    return int(native_collectives().phx_group_bytes(size, slot_bytes))


class SharedMemoryGroup:
    """A `Group` over a file of `group_bytes` zeros.

    `native` is its address, for machine code that calls the collectives itself. A rank that waits looks for `spin_us`
    before it sleeps. `members` are the ranks' numbers in the stage, for messages, if they are only some of it.
    """

    replayed = 0

    def __init__(
        self,
        path: Path,
        rank: int,
        size: int,
        timeout_s: float,
        spin_us: float,
        slot_bytes: int = SLOT_BYTES,
        members: Sequence[int] | None = None,
    ) -> None:
        self.rank, self.size = rank, size
        self._members = members or range(size)
        self._library = native_collectives()
        self.native: Address = opened(path, self._library.phx_group_open, size, rank, slot_bytes, timeout_s, spin_us)
        self._all_reduces = {
            torch.float32: self._library.phx_all_reduce_f32,
            torch.bfloat16: self._library.phx_all_reduce_bf16,
        }

    @property
    def operations(self) -> int:
        address = self.native
        return int(self._library.phx_group_operations(address)) if address else 0

    @property
    def waited_s(self) -> float:
        address = self.native
        return float(self._library.phx_group_waited(address)) if address else 0.0

    def all_reduce(self, x: Tensor) -> Tensor:
        assert x.is_contiguous()
        native = self._all_reduces.get(x.dtype)
        if native is None:
            return x.copy_(self.all_reduce(x.float()))
        self._check(native(self.native, x.data_ptr(), x.numel()))
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = x.new_empty(self.size, *x.shape)
        self._check(self._library.phx_all_gather(self.native, x.data_ptr(), out.data_ptr(), x.nbytes))
        return out

    def broadcast(self, message: Tensor | None) -> Tensor:
        words, count = ctypes.c_void_p(), ctypes.c_long()
        if message is not None:
            message = message.contiguous()
            words.value, count.value = message.data_ptr(), message.numel()
        self._check(self._library.phx_broadcast(self.native, ctypes.byref(words), ctypes.byref(count)))
        if message is not None:
            return message
        received = torch.empty(count.value, dtype=torch.int32)
        if count.value:
            assert words.value is not None
            ctypes.memmove(received.data_ptr(), words.value, received.nbytes)
        return received

    def hand_out(self, x: Tensor) -> Tensor:
        """Rank 0's x on every rank, in place; returns x. Shapes and types agree on all ranks."""
        assert x.is_contiguous()
        self._check(self._library.phx_hand_out(self.native, x.data_ptr(), x.nbytes))
        return x

    def abort(self) -> None:
        if self.native:
            self._library.phx_group_abort(self.native)

    def close(self) -> None:
        address, self.native = self.native, 0
        if address:
            self._library.phx_group_close(address)

    def stalled(self) -> CollectiveStalled:
        """The error to raise when a native operation has failed."""
        stall = Stall()
        self._library.phx_group_stall(self.native, ctypes.byref(stall))
        return CollectiveStalled(
            f"rank {self._members[stall.peer]} of the stage did not reach operation {stall.wanted} within "
            f"{stall.seconds:.1f} s (it stands at {stall.reached}, this is rank {self._members[self.rank]})"
        )

    def _check(self, outcome: int) -> None:
        if outcome:
            raise self.stalled()


def opened(path: Path, opener: ctypes._NamedFuncPointer, *arguments: float) -> Address:
    """What a native `opener` makes of a file.

    Raises:
        OSError: the file cannot be opened or mapped.
    """
    fd = open_file(path)
    try:
        address = opener(fd, *arguments)
    finally:
        os.close(fd)
    if not address:
        raise OSError(f"{path} cannot be mapped: is there a limit on this process's address space?")
    return int(address)
