"""Draws in the native library: see csrc/sampling.h."""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_int, c_int32, c_long, c_void_p

import torch
from torch import Tensor

from partitioning.plan import Span
from workers.collectives import Group, SharedMemoryGroup
from workers.native.calls import GroupCalls
from workers.native.team import Team
from workers.native.weights import LANES
from workers.sampling.draws import Draws
from workers.sampling.noise import token_keys

_AllGather = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_long)


class _Gather(Structure):
    _fields_ = (("all_gather", c_void_p), ("self", c_void_p), ("ranks", c_long))


class _Logits(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("stride", c_long),
        ("columns", c_long),
        ("count", c_long),
        ("token_keys", c_void_p),
        ("vocab_size", c_long),
        ("first_id", c_int32),
    )


class NativeDrawing:
    """See `workers.sampling.drawing.Drawing`.

    `token_keys` [shard, padded to whole vectors] int32 are what noise is made of.
    """

    def __init__(self, native: ctypes.CDLL, team: Team, vocab: Span, vocab_size: int, group: Group) -> None:
        self._native, self._team, self._group = native, team, group
        self._vocab, self._vocab_size = vocab, vocab_size
        self._calls = GroupCalls(group)
        self._callback = _AllGather(self._calls.back(self._all_gather))
        self._gather = self._gatherer()
        self.token_keys = token_keys(torch.arange(vocab.start, vocab.start + -(-len(vocab) // LANES) * LANES))

    def draw(self, logits: Tensor, draws: Draws) -> Tensor:
        ids = torch.empty(len(draws), dtype=torch.int32)
        shard = _Logits(
            data=logits.data_ptr(),
            stride=logits.stride(0),
            columns=len(self._vocab),
            count=len(draws),
            token_keys=self.token_keys.data_ptr(),
            vocab_size=self._vocab_size,
            first_id=self._vocab.start,
        )
        status = self._native.phx_draw(
            self._team.address, byref(shard), draws.ctypes.data, byref(self._gather), ids.data_ptr()
        )
        self._calls.check(status)
        return ids

    def _gatherer(self) -> _Gather:
        """Ranks of one host meet in the library itself; between hosts, it calls back."""
        if isinstance(self._group, SharedMemoryGroup):
            function = ctypes.cast(self._native.phx_all_gather, c_void_p)
            return _Gather(function, self._group.native, self._group.size)
        return _Gather(ctypes.cast(self._callback, c_void_p), None, self._group.size)

    def _all_gather(self, _: int, own: int, gathered: int, count: int) -> None:
        mine = torch.frombuffer((ctypes.c_char * count).from_address(own), dtype=torch.uint8)
        everyones = self._group.all_gather(mine)
        ctypes.memmove(gathered, everyones.data_ptr(), everyones.nbytes)
