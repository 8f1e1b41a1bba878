"""The ranks of a stage on GPUs of one host, which reach each other's memory (torch's symmetric memory)."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroup, Store

from workers.collectives import CollectiveStalled, Group
from workers.gpu.ready import missing
from workers.native.build import switched_off

if TYPE_CHECKING:
    from workers.gpu.one_shot import OneShot

_log = logging.getLogger(__name__)

# A rank that sees its own GPU alone knows it by number 0, as the others know theirs, which torch takes for one GPU.
_SEEN_ALONE = "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"


def with_quick_sums(group: Group, control: Group, store: Store, name: str, device: torch.device) -> Group:
    """`group`, whose sums of few numbers take one launch where every rank can do that: all ranks find the same.

    Args:
        control: the same ranks, which meet there in host memory.
        store: where they find each other's memory, under a `name` of this group alone.
    """
    quick, why = None, None
    try:
        quick = _quick(group, store, name, device)
    except (RuntimeError, ImportError) as error:
        why = str(error).partition("\n")[0]
    everywhere = bool(control.all_gather(torch.tensor([float(quick is not None)])).all())
    if quick is None or not everywhere:
        _log.info("sums go through NCCL alone: %s", why or "another rank does not reach the others' memory")
        return group
    return quick


def _quick(group: Group, store: Store, name: str, device: torch.device) -> Group:
    if (why := "PHALANX_NATIVE is off" if switched_off() else missing()) is not None:
        raise RuntimeError(why)
    from torch._C._distributed_c10d import _register_process_group, _SymmetricMemory

    from workers.gpu.one_shot import OneShot, shared_bytes

    os.environ[_SEEN_ALONE] = "1"
    alike = ProcessGroup(store, group.rank, group.size)  # whose store is all that is used
    _register_process_group(name, alike)  # type: ignore[arg-type]  # a NewType of str
    memory = _SymmetricMemory.empty_strided_p2p((shared_bytes(group.size),), (1,), torch.uint8, device, name)
    memory.zero_()
    torch.cuda.synchronize(device)  # before others write their flags there
    handle = _SymmetricMemory.rendezvous(memory, name)
    return SymmetricGroup(group, OneShot.of(group.rank, handle.buffer_ptrs, device), (memory, handle))


class SymmetricGroup:
    """A `Group`: few numbers are summed in one launch (`one_shot`), for the rest there is `group`. `kept` has to live
    as long as it does."""

    def __init__(self, group: Group, one_shot: OneShot, kept: object) -> None:
        self.rank, self.size = group.rank, group.size
        self.replayed = one_shot.most
        self._group, self._one_shot, self._kept = group, one_shot, kept
        self._sums = 0
        self._aborted = False

    @property
    def operations(self) -> int:
        return self._group.operations + self._sums

    @property
    def waited_s(self) -> float | None:
        return self._group.waited_s

    def all_reduce(self, x: Tensor) -> Tensor:
        if not 0 < x.numel() <= self._one_shot.most:
            return self._group.all_reduce(x)
        if self._aborted:
            raise CollectiveStalled("all-reduce: a rank of the stage is gone")
        self._sums += 1
        return self._one_shot.all_reduce(x)

    def all_gather(self, x: Tensor) -> Tensor:
        return self._group.all_gather(x)

    def broadcast(self, message: Tensor | None) -> Tensor:
        return self._group.broadcast(message)

    def abort(self) -> None:
        self._aborted = True
        self._one_shot.end()
        self._group.abort()

    def close(self) -> None:
        self._group.close()
