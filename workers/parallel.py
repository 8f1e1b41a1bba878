"""A rank's connections: to its stage, to the stages before and after, and to rank 0.

Tensors between stages and StepPlans to other stages go rank to rank, through a `Channel` each; inside a stage
everything goes through its `Group`. All of it comes up over one TCP store that rank 0 hosts.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store, TCPStore

from partitioning.plan import Plan
from workers.collectives import Channel, Group, HierarchicalGroup, ProcessChannel, ProcessGroup, SoloGroup
from workers.collectives.channel import SharedMemoryChannel, channel_bytes
from workers.collectives.flight_recorder import unfinished
from workers.collectives.process_group import FRAME, framed
from workers.collectives.shared_file import SharedFiles, host_key
from workers.collectives.shared_memory import SharedMemoryGroup, group_bytes
from workers.gpu.symmetric import with_quick_sums
from workers.native.library import library
from workers.progress import Progress, Pulse
from workers.rendezvous import SignedStore, prove
from workers.security.secret import derived
from workers.step_plan import Ints, StepPlan

_PLAN, _HIDDEN, _RESULT = 1, 2, 3  # message tags
_STILL_S = 1.0  # of a step that takes longer, it is worth the time to ask torch where it stands
# What may be under way between two ranks of a host. A result is some numbers for each running sequence, so it always
# fits: the last stage must not wait for rank 0, which may be waiting to hand over hidden states.
_CAPACITY = {_PLAN: 256 << 10, _HIDDEN: 2 << 20, _RESULT: 1 << 20}
# A rank that waits looks for longer than another program takes its peer's core (see csrc/wait.h), then sleeps; where
# other ranks need its core, it sleeps almost at once.
_SPIN_US, _CROWDED_SPIN_US = 2000.0, 2.0


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


@dataclass(frozen=True)
class _Link:
    """One way from a rank to another, for one kind of message."""

    tag: int
    sender: int
    receiver: int

    @property
    def name(self) -> str:
        return f"link{self.tag}/{self.sender}-{self.receiver}"


class ParallelContext:
    """What one rank of a plan uses to talk to the others.

    `native` says whether every rank of the replica has the native library; `progress` what this rank is doing.

    Args:
        store: reached by all ranks; only what is signed with `secret`, which the ranks of one life of a replica share,
            is heeded there.
        address: of this rank, for the others to connect to.
        device: of this rank's tensors; decides between NCCL and Gloo or shared memory.
        host: the same for ranks that can share memory, which is found out if it is not given.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        store: Store,
        secret: str,
        address: str,
        device: torch.device,
        timeout_s: float,
        host: str | None = None,
    ) -> None:
        mine = plan.ranks[rank]
        self._rank, self._tp, self._pp, self._stage = rank, plan.tp, plan.pp, mine.stage
        self._ranks = len(plan.ranks)
        self._device = device
        self._timeout_s = timeout_s
        self._address = address
        self.progress = Progress()
        self._groups: list[Any] = []
        self._secret = secret
        self._plain = PrefixStore(derived(secret, "nccl"), store)
        self._signed = store = SignedStore(store, secret)  # kept: torch holds on to its C++ half alone
        self._hosts = self._meet(store, host or host_key())
        self.native = all(self._hosts)
        here = [peer for peer, there in enumerate(self._hosts) if there == self._hosts[rank]]
        crowded = sum(plan.ranks[peer].threads for peer in here) > (os.cpu_count() or 1)
        self._spin_us = _CROWDED_SPIN_US if crowded else _SPIN_US
        with SharedFiles(PrefixStore("files", store), rank) as files:
            self._make_files(files)
            self._control = self._host_group(files, PrefixStore(f"stage{mine.stage}", store), mine.tp_rank)
            self._channels = self._open_channels(files, store)
        self.stage: Group = self._control
        if device.type == "cuda" and plan.tp > 1:
            self.stage = ProcessGroup(self._nccl(f"stage{mine.stage}", mine.tp_rank, plan.tp))
            if len(self._stage_hosts()) == 1:
                name = derived(secret, f"sums of stage {mine.stage}")
                memory = PrefixStore(name, self._plain)
                self.stage = with_quick_sums(self.stage, self._control, memory, name, device)

    def send_plan(self, plan: StepPlan) -> None:
        """Rank 0: hands a StepPlan to every other rank, without waiting for them."""
        if self._ranks == 1:
            return
        message = torch.from_numpy(plan.pack())
        if self._pp > 1:
            frame = framed(message)
            for stage in range(1, self._pp):
                channel = self._channels[_Link(_PLAN, 0, stage * self._tp)]
                channel.send(frame[:FRAME])
                if len(frame) > FRAME:
                    channel.send(frame[FRAME:])
        self._control.broadcast(message)

    def receive_plan(self) -> Ints:
        """Other ranks: waits for the next StepPlan."""
        self.progress.rest("waiting for a plan")
        message = None
        if self._stage > 0 and self._rank % self._tp == 0:
            channel = self._channels[_Link(_PLAN, 0, self._rank)]
            head = channel.receive(torch.empty(FRAME, dtype=torch.int32))
            length = int(head[0])
            if length + 1 > FRAME:
                head = torch.cat([head, channel.receive(torch.empty(length + 1 - FRAME, dtype=torch.int32))])
            message = head[1 : length + 1]
        words: Ints = self._control.broadcast(message).numpy()
        return words

    def send_hidden(self, x: Tensor) -> None:
        """To the same place in the next stage: [tokens, hidden] float32."""
        self._channels[_Link(_HIDDEN, self._rank, self._rank + self._tp)].send(x.contiguous())

    def receive_hidden(self, tokens: int, hidden: int) -> Tensor:
        """From the same place in the stage before."""
        self.progress.begin("waiting for the stage before")
        x = torch.empty(tokens, hidden, device=self._device)
        return self._channels[_Link(_HIDDEN, self._rank - self._tp, self._rank)].receive(x)

    def send_result(self, result: Tensor) -> None:
        """The last stage's first rank: sampled tokens to rank 0, a float32 vector."""
        self._channels[_Link(_RESULT, self._rank, 0)].send(result)

    def receive_result(self, length: int) -> Tensor:
        self.progress.begin("waiting for the last stage")
        return self._channels[_Link(_RESULT, (self._pp - 1) * self._tp, 0)].receive(torch.empty(length))

    def pulse(self) -> Pulse:
        """What this rank is doing; for any thread."""
        pulse = self.progress.pulse(self.stage.operations)
        if self._groups and not pulse.resting and pulse.seconds > _STILL_S:
            return replace(pulse, unfinished=unfinished())
        return pulse

    def abort(self) -> None:
        """Makes what another thread is waiting for fail at once: a rank is known to be dead."""
        self._control.abort()
        for channel in self._channels.values():
            channel.abort()
        if self.stage is not self._control:
            self.stage.abort()
        for group in self._groups:
            group.abort()

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._control.close()
        for group in self._groups:
            group.shutdown()

    def _meet(self, store: Store, host: str) -> list[str]:
        """The host of each rank, in words that only ranks of one host share; empty without the native library."""
        store.set(f"host{self._rank}", host if library() is not None else "")
        return [store.get(f"host{peer}").decode() for peer in range(self._ranks)]

    def _share_memory(self, *ranks: int) -> bool:
        return len({self._hosts[rank] for rank in ranks}) == 1 and self._hosts[ranks[0]] != ""

    def _links(self) -> list[_Link]:
        """All links of the replica: plans to the leaders of later stages, hidden states onwards, results back."""
        if self._pp == 1:
            return []
        leaders = range(self._tp, self._ranks, self._tp)
        plans = [_Link(_PLAN, 0, leader) for leader in leaders]
        hidden = [_Link(_HIDDEN, rank, rank + self._tp) for rank in range(self._ranks - self._tp)]
        return [*plans, *hidden, _Link(_RESULT, leaders[-1], 0)]

    def _in_memory(self, link: _Link) -> bool:
        """Whether a link goes through shared memory."""
        on_host = link.tag != _HIDDEN or self._device.type == "cpu"
        return on_host and self._share_memory(link.sender, link.receiver)

    @property
    def _stage_ranks(self) -> range:
        return range(self._stage * self._tp, (self._stage + 1) * self._tp)

    def _stage_hosts(self) -> list[list[int]]:
        """The ranks of this stage, counted within it, by host; a rank that cannot share memory is a host of its own."""
        hosts: dict[str, list[int]] = {}
        for number, rank in enumerate(self._stage_ranks):
            hosts.setdefault(self._hosts[rank] or f"{rank} alone", []).append(number)
        return list(hosts.values())

    def _memory_of(self, host: list[int]) -> str:
        return f"stage{self._stage}/from{host[0]}"

    def _make_files(self, files: SharedFiles) -> None:
        for host in self._stage_hosts():
            first, *others = (self._stage_ranks[rank] for rank in host)
            if others and self._rank == first:
                files.make(self._memory_of(host), group_bytes(len(host)), others)
        for link in self._links():
            if link.receiver == self._rank and self._in_memory(link):
                files.make(link.name, channel_bytes(_CAPACITY[link.tag]), [link.sender])

    def _open_channels(self, files: SharedFiles, store: Store) -> dict[_Link, Channel]:
        """This rank's channels. The process groups of links between hosts need all ranks to make them."""
        links = self._links()
        gloo = nccl = None
        if not all(self._in_memory(link) or link.tag == _HIDDEN for link in links) or (
            self._device.type == "cpu" and not all(self._in_memory(link) for link in links)
        ):
            gloo = self._gloo("links", PrefixStore("world", store), self._rank, self._ranks)
        if links and self._device.type == "cuda":
            nccl = self._nccl("between", self._rank, self._ranks)
        channels: dict[_Link, Channel] = {}
        for link in links:
            if self._rank not in (link.sender, link.receiver):
                continue
            sends = self._rank == link.sender
            peer = link.receiver if sends else link.sender
            if self._in_memory(link):
                channels[link] = SharedMemoryChannel(
                    files.path(link.name), self._rank, peer, sends, _CAPACITY[link.tag], self._timeout_s, self._spin_us
                )
                files.opened(link.name)
            else:
                group = nccl if nccl is not None and link.tag == _HIDDEN else gloo
                channels[link] = ProcessChannel(group, self._rank, peer, link.tag)
        return channels

    def _host_group(self, files: SharedFiles, store: Store, rank: int) -> Group:
        """The stage's group for tensors in host memory: what goes between hosts goes over Gloo, the rest in memory."""
        if self._tp == 1:
            return SoloGroup()
        hosts = self._stage_hosts()
        if len(hosts) == self._tp:
            return ProcessGroup(self._gloo(f"stage {self._stage}", store, rank, self._tp))
        host = next(host for host in hosts if rank in host)
        here = None
        if len(host) > 1:
            name = self._memory_of(host)
            here = SharedMemoryGroup(
                files.path(name), host.index(rank), len(host), self._timeout_s, self._spin_us, members=host
            )
            files.opened(name)
        if here is not None and len(hosts) == 1:
            return here
        between = None
        if rank == host[0]:
            leaders = [ranks[0] for ranks in hosts]
            name = f"the hosts of stage {self._stage}"
            between = ProcessGroup(self._gloo(name, store, hosts.index(host), len(hosts)), leaders)
        return HierarchicalGroup(rank, hosts, here, between)

    def _gloo(self, name: str, store: Store, rank: int, size: int) -> Any:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=self._timeout_s)
        options.group_name = name
        options._devices = [ProcessGroupGloo.create_device(hostname=self._address)]
        group = ProcessGroupGloo(store, rank, size, options)
        self._groups.append(group)
        prove(group, self._secret, torch.device("cpu"))
        return group

    def _nccl(self, name: str, rank: int, size: int) -> Any:
        # Builds of torch for CPUs have no NCCL.
        from torch._C._distributed_c10d import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=self._timeout_s)
        options.group_name = name  # type: ignore[assignment]  # a NewType of str
        group = ProcessGroupNCCL(PrefixStore(name, self._plain), rank, size, options)
        self._groups.append(group)
        prove(group, self._secret, self._device)
        return group
