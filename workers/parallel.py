"""A rank's connections: to its stage, to the stages before and after, and to rank 0.

Tensors between stages and StepPlans to other stages go rank to rank; inside a stage everything goes through its
`Group`. All of it comes up over one TCP store that rank 0 hosts.
"""

from __future__ import annotations

import socket
from collections import deque
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store, TCPStore

from partitioning.plan import Plan
from workers.collectives import CollectiveStalled, Group, ProcessGroup, SharedMemoryGroup, SoloGroup
from workers.collectives.process_group import FRAME, framed
from workers.collectives.shared_memory import create_file, supported
from workers.step_plan import Ints

_SLOT_BYTES = 2 << 20  # larger exchanges go in pieces of this size, which also keeps them in the cache
_PLAN, _HIDDEN, _RESULT = 1, 2, 3  # message tags


def open_store(host: str, timeout_s: float) -> TCPStore:
    """The rendezvous point of a replica, listening on `host` at a free port (see its `.port`)."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    return TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )  # fmt: skip


def join_store(host: str, port: int, timeout_s: float) -> TCPStore:
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


class ParallelContext:
    """What one rank of a plan uses to talk to the others.

    Args:
        store: reached by all ranks; `epoch_key` keeps one life of a replica apart from the next.
        address: of this rank, for the others to connect to.
        device: of this rank's tensors; decides between NCCL and Gloo or shared memory.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        store: Store,
        epoch_key: str,
        address: str,
        device: torch.device,
        timeout_s: float,
    ) -> None:
        mine = plan.ranks[rank]
        self._rank, self._tp, self._pp, self._stage = rank, plan.tp, plan.pp, mine.stage
        self._device = device
        self._timeout = timedelta(seconds=timeout_s)
        self._address = address
        self._sending: deque[tuple[Any, Tensor]] = deque()
        self._groups: list[Any] = []
        store = PrefixStore(epoch_key, store)
        self._world: Any = None
        self._between: Any = None
        if plan.pp > 1:
            self._world = self._between = self._gloo(PrefixStore("world", store), rank, len(plan.ranks))
            if device.type == "cuda":
                self._between = self._nccl(PrefixStore("between", store), rank, len(plan.ranks))
        stage_store = PrefixStore(f"stage{mine.stage}", store)
        self._control = self._host_group(stage_store, mine.tp_rank, timeout_s)
        self.stage: Group = self._control
        if device.type == "cuda" and plan.tp > 1:
            self.stage = ProcessGroup(self._nccl(PrefixStore("nccl", stage_store), mine.tp_rank, plan.tp))

    def send_plan(self, words: Ints) -> None:
        """Rank 0: hands a StepPlan to every other rank, without waiting for them."""
        message = torch.from_numpy(words)
        for stage in range(1, self._pp):
            frame = framed(message)
            leader = stage * self._tp
            self._send(self._world, frame[:FRAME], leader, _PLAN)
            if len(frame) > FRAME:
                self._send(self._world, frame[FRAME:], leader, _PLAN)
        self._control.broadcast(message)

    def receive_plan(self) -> Ints:
        """Other ranks: waits for the next StepPlan."""
        message = None
        if self._stage > 0 and self._rank % self._tp == 0:
            head = self._receive(self._world, torch.empty(FRAME, dtype=torch.int32), 0, _PLAN)
            length = int(head[0])
            if length + 1 > FRAME:
                rest = torch.empty(length + 1 - FRAME, dtype=torch.int32)
                head = torch.cat([head, self._receive(self._world, rest, 0, _PLAN)])
            message = head[1 : length + 1]
        words: Ints = self._control.broadcast(message).numpy()
        return words

    def send_hidden(self, x: Tensor) -> None:
        """To the same place in the next stage: [tokens, hidden]."""
        self._send(self._between, x.contiguous(), self._rank + self._tp, _HIDDEN)

    def receive_hidden(self, tokens: int, hidden: int, dtype: torch.dtype) -> Tensor:
        """From the same place in the stage before."""
        x = torch.empty(tokens, hidden, dtype=dtype, device=self._device)
        return self._receive(self._between, x, self._rank - self._tp, _HIDDEN)

    def send_result(self, result: Tensor) -> None:
        """The last stage's first rank: sampled tokens to rank 0, a float32 vector."""
        self._send(self._world, result, 0, _RESULT)

    def receive_result(self, length: int) -> Tensor:
        return self._receive(self._world, torch.empty(length), (self._pp - 1) * self._tp, _RESULT)

    def abort(self) -> None:
        """Makes what another thread is waiting for fail at once: a rank is known to be dead."""
        self._control.abort()
        for group in self._groups:
            group.abort()

    def close(self) -> None:
        for work, _ in self._sending:
            with suppress(RuntimeError):  # the peer may be gone, and then so is the message's use
                work.wait()
        self._control.close()
        for group in self._groups:
            group.shutdown()

    def _send(self, group: Any, x: Tensor, to: int, tag: int) -> None:
        while self._sending and self._sending[0][0].is_completed():
            self._sending.popleft()
        # The tensor has to live until it is sent.
        try:
            self._sending.append((group.send([x], to, tag), x))
        except RuntimeError as error:
            raise CollectiveStalled(f"rank {self._rank} could not reach rank {to}: {error}") from error

    def _receive(self, group: Any, x: Tensor, source: int, tag: int) -> Tensor:
        try:
            group.recv([x], source, tag).wait()
        except RuntimeError as error:
            raise CollectiveStalled(f"rank {self._rank} waited in vain for rank {source}: {error}") from error
        return x

    def _host_group(self, store: Store, rank: int, timeout_s: float) -> Group:
        """The stage's group for tensors in host memory: shared memory when all its ranks see the same."""
        if self._tp == 1:
            return SoloGroup()
        path = Path()
        if rank == 0:
            if supported():
                path = create_file(self._tp, _SLOT_BYTES)
            store.set("file", str(path))
        else:
            path = Path(store.get("file").decode())
        store.set(f"sees{rank}", str(int(path.is_file())))
        everyone = all(store.get(f"sees{peer}") == b"1" for peer in range(self._tp))
        if not everyone:
            if rank == 0:
                path.unlink(missing_ok=True)
            return ProcessGroup(self._gloo(store, rank, self._tp))
        group = SharedMemoryGroup(path, rank, self._tp, _SLOT_BYTES, timeout_s)
        store.set(f"open{rank}", "1")
        if rank == 0:
            store.wait([f"open{peer}" for peer in range(self._tp)])
            path.unlink()
        return group

    def _gloo(self, store: Store, rank: int, size: int) -> Any:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = self._timeout
        options._devices = [ProcessGroupGloo.create_device(hostname=self._address)]
        group = ProcessGroupGloo(store, rank, size, options)
        self._groups.append(group)
        return group

    def _nccl(self, store: Store, rank: int, size: int) -> Any:
        # Builds of torch for CPUs have no NCCL.
        from torch._C._distributed_c10d import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = self._timeout
        group = ProcessGroupNCCL(store, rank, size, options)
        self._groups.append(group)
        return group
