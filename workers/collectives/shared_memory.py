"""Collectives between processes of one host, through a memory-mapped file.

A loopback TCP all-reduce of one token's hidden state costs about half a millisecond; copying it through shared
memory costs a few microseconds, and a token needs two of them a layer.

Protocol: operations are numbered. Each rank owns a flag and two slots, used in turn. To take part in operation s a
rank writes its slot s % 2 and then sets its flag to s; whoever needs the data waits for that flag. A flag of s also
says "done reading s - 1", so slot s % 2 is free again once every flag has reached s - 1. Data is written before the
flag and read after it; x86 keeps both orders (total store order), other processors do not promise it.
"""

from __future__ import annotations

import mmap
import os
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from workers.collectives.group import CollectiveStalled

_LINE = 64  # bytes between flags, so that no two share a cache line
_DATA = 4096  # where the slots begin
_HEADER = 16  # bytes before a broadcast message, for its length


def supported() -> bool:
    """Whether this processor's memory ordering allows the protocol."""
    return platform.machine() in ("x86_64", "AMD64")


def create_file(size: int, slot_bytes: int) -> Path:
    """Makes the file for `size` ranks; every rank opens it, then one removes its name.

    Raises:
        OSError: the shared-memory file system has no room (containers often get 64 MB).
    """
    folder = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"phalanx-{os.getpid()}-{os.urandom(8).hex()}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(fd, 0, _file_bytes(size, slot_bytes))
    except OSError as error:
        path.unlink()
        raise OSError(
            error.errno,
            f"no room for {_file_bytes(size, slot_bytes)} bytes of shared memory in {folder} "
            "(in a container, raise its shm size)",
        ) from error
    finally:
        os.close(fd)
    return path


def _file_bytes(size: int, slot_bytes: int) -> int:
    return _DATA + 2 * size * slot_bytes


class SharedMemoryGroup:
    """A `Group` over a file made by `create_file`. `slot_bytes` bounds one exchange; larger ones go in pieces."""

    def __init__(self, path: Path, rank: int, size: int, slot_bytes: int, timeout_s: float) -> None:
        self.rank, self.size = rank, size
        self._timeout_s = timeout_s
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), _file_bytes(size, slot_bytes))
        self._flags = memoryview(self._map)[: size * _LINE].cast("q")
        self._stride = _LINE // 8
        self._slots = torch.frombuffer(self._map, dtype=torch.uint8, offset=_DATA).view(2, size, slot_bytes)
        self._typed = {torch.uint8: self._slots}
        self._operation = 0
        self._aborted = False
        # Spinning only pays while every rank has a core of its own.
        self._spins = 20_000 if size <= (os.cpu_count() or 1) else 50

    def all_reduce(self, x: Tensor) -> Tensor:
        flat = x.view(-1)
        slots = self._view(x.dtype)
        capacity = slots.shape[2]
        for piece in torch.split(flat, capacity) if flat.numel() > capacity else (flat,):
            parts = self._exchange(slots, piece)
            if self.size == 2:
                torch.add(parts[0], parts[1], out=piece)
            else:
                piece.copy_(parts.sum(dim=0, dtype=torch.float32))
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        flat = x.contiguous().view(-1)
        slots = self._view(x.dtype)
        capacity = slots.shape[2]
        if flat.numel() <= capacity:
            return self._exchange(slots, flat).clone().view(self.size, *x.shape)
        pieces = [self._exchange(slots, piece).clone() for piece in torch.split(flat, capacity)]
        return torch.cat(pieces, dim=1).view(self.size, *x.shape)

    def broadcast(self, message: Tensor | None) -> Tensor:
        words = self._view(torch.int32)
        header = _HEADER // 4
        room = words.shape[2] - header
        if self.rank == 0:
            assert message is not None
            pieces = torch.split(message, room) if message.numel() > room else (message,)
            for piece in pieces:
                slot = self._begin(words)[0]
                slot[0] = message.numel()
                slot[header : header + piece.numel()] = piece
                self._arrive()
            return message
        received: list[Tensor] = []
        while True:
            slot = self._begin(words)[0]
            self._arrive()
            self._wait_for(0, self._operation)
            total = int(slot[0])
            done = sum(piece.numel() for piece in received)
            received.append(slot[header : header + min(room, total - done)].clone())
            if done + room >= total:
                return received[0] if len(received) == 1 else torch.cat(received)

    def abort(self) -> None:
        self._aborted = True

    def close(self) -> None:
        """Drops the mapping once the last tensor that looks into it is gone."""
        self._typed.clear()
        del self._slots
        self._flags.release()

    def _view(self, dtype: torch.dtype) -> Tensor:
        view = self._typed.get(dtype)
        if view is None:
            view = self._typed[dtype] = self._slots.view(dtype)
        return view

    def _exchange(self, slots: Tensor, flat: Tensor) -> Tensor:
        """[size, n]: every rank's `flat`, valid until this rank's next operation but one."""
        parts = self._begin(slots)[:, : flat.numel()]
        parts[self.rank].copy_(flat)
        self._arrive()
        for peer in range(self.size):
            self._wait_for(peer, self._operation)
        return parts

    def _begin(self, slots: Tensor) -> Tensor:
        for peer in range(self.size):
            self._wait_for(peer, self._operation)
        self._operation += 1
        return slots[self._operation % 2]

    def _arrive(self) -> None:
        self._flags[self.rank * self._stride] = self._operation

    def _wait_for(self, peer: int, operation: int) -> None:
        flags, index = self._flags, peer * self._stride
        if flags[index] >= operation:
            return
        for _ in range(self._spins):
            if flags[index] >= operation:
                return
        started = time.monotonic()
        pause = 0.0
        while flags[index] < operation:
            time.sleep(pause)
            waited = time.monotonic() - started
            if waited > 0.002:  # an idle replica: give the processor away
                pause = 0.0001 if waited < 0.1 else 0.001
            if waited > self._timeout_s or self._aborted:
                raise CollectiveStalled(
                    f"rank {peer} of the stage did not reach operation {operation} within {waited:.1f} s "
                    f"(it stands at {flags[index]}, this is rank {self.rank})"
                )
