"""One-way connections between ranks of neighbouring stages: shared memory inside a host, Gloo or NCCL elsewhere."""

from __future__ import annotations

import ctypes
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from workers.collectives.group import CollectiveStalled
from workers.collectives.shared_memory import opened
from workers.native.collectives import Stall, native_collectives


class Channel(Protocol):
    """Messages arrive in the order in which they were sent. The receiver knows their shapes and types."""

    def send(self, x: Tensor) -> None:
        """Hands over a contiguous tensor, which may not be written to any more; waits only if much is under way."""
        ...

    def receive(self, x: Tensor) -> Tensor:
        """Fills x with the next message and returns it."""
        ...

    def abort(self) -> None:
        """Makes an operation under way in another thread fail with CollectiveStalled."""
        ...

    def close(self) -> None: ...


class ProcessChannel:
    """Between ranks `rank` and `peer` of a torch.distributed process group, which belongs to the caller."""

    def __init__(self, group: Any, rank: int, peer: int, tag: int) -> None:
        self._group, self._rank, self._peer, self._tag = group, rank, peer, tag
        self._sending: deque[tuple[Any, Tensor]] = deque()

    def send(self, x: Tensor) -> None:
        while self._sending and self._sending[0][0].is_completed():
            self._sending.popleft()
        # The tensor has to live until it is sent.
        try:
            self._sending.append((self._group.send([x], self._peer, self._tag), x))
        except RuntimeError as error:
            raise CollectiveStalled(f"rank {self._rank} could not reach rank {self._peer}: {error}") from error

    def receive(self, x: Tensor) -> Tensor:
        try:
            self._group.recv([x], self._peer, self._tag).wait()
        except RuntimeError as error:
            raise CollectiveStalled(f"rank {self._rank} waited in vain for rank {self._peer}: {error}") from error
        return x

    def abort(self) -> None:
        pass

    def close(self) -> None:
        for work, _ in self._sending:
            with suppress(RuntimeError):  # the peer may be gone, and then so is the message's use
                work.wait()


def channel_bytes(capacity: int) -> int:
    """Of the file for a channel that holds `capacity` bytes, a power of two."""
    return int(native_collectives().phx_channel_bytes(capacity))


class SharedMemoryChannel:
    """Between ranks `rank` and `peer` over a file of `channel_bytes` zeros."""

    def __init__(
        self, path: Path, rank: int, peer: int, sends: bool, capacity: int, timeout_s: float, spin_us: float
    ) -> None:
        self._rank, self._peer = rank, peer
        self._library = native_collectives()
        self._native = opened(path, self._library.phx_channel_open, sends, capacity, timeout_s, spin_us)

    def send(self, x: Tensor) -> None:
        assert x.is_contiguous()
        self._check(self._library.phx_channel_send(self._native, x.data_ptr(), x.nbytes))

    def receive(self, x: Tensor) -> Tensor:
        self._check(self._library.phx_channel_receive(self._native, x.data_ptr(), x.nbytes))
        return x

    def abort(self) -> None:
        if self._native:
            self._library.phx_channel_abort(self._native)

    def close(self) -> None:
        address, self._native = self._native, 0
        if address:
            self._library.phx_channel_close(address)

    def _check(self, outcome: int) -> None:
        if outcome:
            stall = Stall()
            self._library.phx_channel_stall(self._native, ctypes.byref(stall))
            raise CollectiveStalled(f"rank {self._rank} waited {stall.seconds:.1f} s in vain for rank {self._peer}")
