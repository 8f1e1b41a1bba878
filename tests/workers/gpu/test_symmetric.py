"""Ranks that reach each other's memory, interpreted: each is a process, their memory files that all map. On GPUs,
torch's symmetric memory takes the place of the files."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore

pytest.importorskip("triton")

from partitioning.checkpoint import open_checkpoint
from partitioning.plan import Plan
from tests.replicas import config_for, plan_for
from tests.tiny_models import make_tiny
from tests.workers.gpu.test_stages import Again, logits, plain_stage
from tests.workers.native.test_stage import step
from tests.workers.processes import processes
from tests.workers.test_collectives import a_file, on_every_rank
from workers.collectives import CollectiveStalled, Group, SharedMemoryGroup
from workers.collectives.shared_memory import SLOT_BYTES, group_bytes
from workers.gpu import symmetric
from workers.gpu.kernels import TritonKernels
from workers.gpu.one_shot import OneShot, shared_bytes
from workers.gpu.symmetric import SymmetricGroup, with_quick_sums
from workers.model.stage import TorchStage
from workers.model.weights import WeightReader
from workers.native.library import library

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted kernels are for machines without GPUs"),
    pytest.mark.skipif(library() is None, reason="without the native library, ranks of a host do not know each other"),
]

CPU = torch.device("cpu")
# Of several programs, then of one, then of more than before; numbers that fill no program; in turn over both slots.
# Interpreters do not round to bfloat16 as GPUs do.
SUMS = [
    (1, torch.float32),
    (4097, torch.float32),
    (3, torch.float16),
    (7000, torch.float16),
    (2048, torch.float32),
    (2049, torch.float16),
    (576, torch.float32),
]


def _memory(folder: Path, size: int) -> list[Tensor]:
    """Every rank's, mapped."""
    length = shared_bytes(size)
    return [
        torch.from_file(str(folder / str(rank)), shared=True, size=length, dtype=torch.uint8) for rank in range(size)
    ]


def _group(folder: Path, meeting: Path, rank: int, size: int) -> SymmetricGroup:
    torch.set_num_threads(1)
    memory = _memory(folder, size)
    one_shot = OneShot.of(rank, [own.data_ptr() for own in memory], CPU)
    return SymmetricGroup(SharedMemoryGroup(meeting, rank, size, 60.0, 20.0), one_shot, memory)


def _part(rank: int, number: int, count: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(100 * number + rank)).to(dtype)


def _sums(folder: Path, meeting: Path, rank: int, size: int) -> None:
    group = _group(folder, meeting, rank, size)
    for number, (count, dtype) in enumerate(SUMS):
        expected = torch.zeros(count)
        for peer in range(size):
            expected += _part(peer, number, count, dtype).float()
        found = group.all_reduce(_part(rank, number, count, dtype))
        assert torch.equal(found, expected.to(dtype)), (number, count, dtype)
    assert group.operations == len(SUMS)
    many = group.all_reduce(torch.full((group.replayed + 1,), 1.0 + rank))
    assert many.tolist() == [sum(range(1, size + 1))] * len(many)
    assert group.all_gather(torch.tensor([rank])).tolist() == [[peer] for peer in range(size)]
    assert group.all_reduce(torch.empty(0, 5)).shape == (0, 5)
    group.abort()
    with pytest.raises(CollectiveStalled):
        group.all_reduce(torch.ones(3))


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_sums_have_equal_bits_on_each_rank_in_the_order_of_the_ranks(tmp_path: Path, size: int) -> None:
    _memory(tmp_path, size)
    with (
        a_file(group_bytes(size, SLOT_BYTES)) as meeting,
        processes(_sums, [(tmp_path, meeting, rank, size) for rank in range(size)]) as codes,
    ):
        pass
    assert codes == [0] * size


def _steps(folder: Path, meeting: Path, rank: int, plan: Plan, whole: Plan) -> None:
    """The logits of this rank's part of the vocabulary, beside those of one rank alone."""
    mine, again = plan.ranks[rank], Again()
    with open_checkpoint(Path(plan.model_path)) as checkpoint:
        kernels = TritonKernels(plan, mine, CPU, again)
        group = _group(folder, meeting, rank, plan.tp)
        stage = TorchStage(WeightReader(checkpoint, plan, mine), plan, mine, config_for(plan), group, CPU, kernels)
    alone = plain_stage(whole)
    for planned in (
        step(1, plan.kv_block_size, (0, 0, [5, 6, 7]), (1, 0, [8])),
        step(2, plan.kv_block_size, (0, 3, [9]), (1, 1, [10])),
        step(3, plan.kv_block_size, (0, 4, [11]), (1, 2, [12])),
    ):
        expected = logits(alone, planned)
        found = logits(stage, planned)
        error = (found - expected[:, mine.vocab.start : mine.vocab.stop]).abs().max()
        assert error <= 2e-5 * expected.abs().max()
    assert (again.recorded, again.replayed) == (1, 2)


def test_two_ranks_replay_decode_steps_with_their_sums(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model", "qwen3", num_hidden_layers=2)
    (folder := tmp_path / "memory").mkdir()
    _memory(folder, 2)
    plan, whole = plan_for(model, tp=2), plan_for(model)
    with (
        a_file(group_bytes(2, SLOT_BYTES)) as meeting,
        processes(_steps, [(folder, meeting, rank, plan, whole) for rank in range(2)]) as codes,
    ):
        pass
    assert codes == [0, 0]


def test_who_waits_for_one_that_is_gone_can_be_told_to_stop(tmp_path: Path) -> None:
    memory = _memory(tmp_path, 2)
    alone = OneShot.of(0, [own.data_ptr() for own in memory], CPU)
    waiting = threading.Thread(target=alone.all_reduce, args=(torch.ones(5000),))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    alone.end()
    waiting.join(30)
    assert not waiting.is_alive()


@pytest.mark.parametrize("able", [(), (0,)], ids=["no rank", "one rank"])
def test_where_not_every_rank_can_all_keep_to_their_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, able: tuple[int, ...]
) -> None:
    quick = symmetric._quick

    def sometimes(group: Group, store: HashStore, name: str, device: torch.device) -> Group:
        return (
            SymmetricGroup(group, OneShot.of(0, [0, 0], CPU), None)
            if group.rank in able
            else quick(group, store, name, device)
        )

    monkeypatch.setattr(symmetric, "_quick", sometimes)
    monkeypatch.setattr(symmetric, "missing", lambda: None)
    store = HashStore()

    def stays(group: Group) -> bool:
        return with_quick_sums(group, group, store, f"{tmp_path} {group.rank}", CPU) is group

    with caplog.at_level(logging.INFO):
        assert all(on_every_rank(2, stays))
    said = sorted(record.getMessage().removeprefix("sums go through NCCL alone: ") for record in caplog.records)
    unable = "SymmetricMemory does not support device type cpu"
    assert said == sorted([unable, "another rank does not reach the others' memory" if able else unable])
