"""Decode steps of fixed shapes, which a GPU replays, compute what steps of any shape do. Here nothing is recorded: a
replay runs the same code again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from partitioning.checkpoint import open_checkpoint
from partitioning.plan import Plan
from tests.replicas import config_for, plan_for
from tests.tiny_models import FAMILIES, make_tiny
from tests.workers.native.test_stage import step
from workers.collectives import SoloGroup
from workers.model.decode_graphs import Replay, recorder
from workers.model.stage import TorchStage
from workers.model.weights import WeightReader

CPU = torch.device("cpu")


class _Again:
    """Counts what is recorded and what is replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Replay) -> Replay:
        run()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def _stage(plan: Plan, rank: int, record: _Again | None = None) -> TorchStage:
    with open_checkpoint(Path(plan.model_path)) as checkpoint:
        weights = WeightReader(checkpoint, plan, plan.ranks[rank])
        return TorchStage(weights, plan, plan.ranks[rank], config_for(plan), SoloGroup(), CPU, record)


# In an 8-bit cache, sums in another order now and then round a number to the next code.
@pytest.mark.parametrize(("stages", "kv_cache", "tolerance"), [(1, "auto", 1e-5), (2, "int8", 5e-3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_steps_compute_what_others_do(
    tmp_path: Path, family: str, stages: int, kv_cache: str, tolerance: float
) -> None:
    plan = plan_for(make_tiny(tmp_path, family), pp=stages, kv_block_size=8, kv_cache=kv_cache)
    records = [_Again() for _ in range(stages)]
    plain = [_stage(plan, rank) for rank in range(stages)]
    replaying = [_stage(plan, rank, record) for rank, record in enumerate(records)]
    rng = np.random.default_rng(3)
    lengths = [13, 2, 30]
    prompts = [rng.integers(0, plan.model.vocab_size, length).tolist() for length in lengths]
    steps = [step(1, 8, *((slot, 0, prompt) for slot, prompt in enumerate(prompts)))]
    for number in range(6):  # the first sequence's second block is full, the third's fourth
        tokens = rng.integers(0, plan.model.vocab_size, 3).tolist()
        rows = [(slot, length + number, tokens[slot : slot + 1]) for slot, length in enumerate(lengths)]
        steps.append(step(2 + number, 8, *(rows if number % 3 else rows[1:])))
    for planned in steps:
        expected = found = None
        for one, other in zip(plain, replaying, strict=True):
            left, right = one.run(planned, expected, None), other.run(planned, found, None)
            expected, found = (result.hidden if result.logits is None else result.logits for result in (left, right))
            assert expected is not None
            assert found is not None
            assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    for record in records:
        # Of two and of four sequences, of four blocks and of eight.
        assert (record.recorded, record.replayed) == (4, 6)


def test_other_steps_are_not_replayed(tmp_path: Path) -> None:
    plan = plan_for(make_tiny(tmp_path, "llama"))
    record = _Again()
    stage = _stage(plan, 0, record)
    stage.run(step(1, plan.kv_block_size, (0, 0, [1, 2, 3]), (1, 0, [4])), None, None)
    unsampled = step(2, plan.kv_block_size, (0, 3, [5]), (1, 1, [6]))
    unsampled.rows[1, 3] = 0  # in the middle of a prompt
    logits = stage.run(unsampled, None, None).logits
    assert logits is not None
    assert len(logits) == 1
    stage.run(step(3, plan.kv_block_size, (0, 4, [5])), None, None, layers=1)
    assert record.recorded == 0


def test_processors_record_nothing() -> None:
    assert recorder(CPU, SoloGroup()) is None
