"""StepPlans as they travel, and which tokens they sample."""

from __future__ import annotations

import numpy as np
import pytest

from workers.request import SamplingParams
from workers.step_plan import ADMISSION, Kind, StepPlan, admission, control_plan


def plan(*rows: tuple[int, int, int, int], step: int = 1, admitted: int = 0) -> StepPlan:
    return StepPlan(
        kind=Kind.RUN,
        step=step,
        admissions=np.array([admission(slot, 3, SamplingParams()) for slot in range(admitted)], dtype=ADMISSION),
        rows=np.array(rows, dtype=np.int32).reshape(-1, 4),
        block_updates=np.array([(slot, 0, slot) for slot in range(admitted)], dtype=np.int32).reshape(-1, 3),
        tokens=np.arange(sum(row[2] for row in rows), dtype=np.int32),
    )


def test_a_row_samples_after_its_last_tokens() -> None:
    """A decode, a prompt that goes on, three guesses, and the end of a prompt."""
    slots, positions = plan((4, 30, 1, 1), (2, 0, 16, 0), (7, 100, 4, 4), (1, 5, 8, 1)).samples()
    assert slots.tolist() == [4, 7, 7, 7, 7, 1]
    assert positions.tolist() == [31, 101, 102, 103, 104, 13]
    assert (slots.dtype, positions.dtype) == (np.int32, np.int64)


def test_a_plan_may_sample_nothing() -> None:
    slots, positions = plan((2, 0, 16, 0)).samples()
    assert (len(slots), len(positions)) == (0, 0)


@pytest.mark.parametrize("sent", [plan((4, 30, 1, 1)), plan((0, 0, 3, 1), (1, 0, 2, 0), admitted=2), plan()])
def test_a_plan_survives_its_way(sent: StepPlan) -> None:
    received = StepPlan.unpack(sent.pack())
    for name in ("kind", "step", "admissions", "rows", "block_updates", "tokens"):
        assert np.array_equal(getattr(received, name), getattr(sent, name)), name


@pytest.mark.parametrize("step", [2**31 - 1, 2**31, 2**32 + 5])
def test_steps_are_counted_for_longer_than_a_word(step: int) -> None:
    assert StepPlan.unpack(plan((4, 30, 1, 1), step=step).pack()).step == step % 2**31
    assert StepPlan.unpack(control_plan(Kind.IDLE, step).pack()).kind is Kind.IDLE


@pytest.mark.parametrize("row", [(-1, 30, 1, 1), (4, -30, 1, 1), (4, 30, 1, 2), (4, 30, 1, -1), (4, 30, 2, 1)])
def test_rows_that_cannot_be_are_refused(row: tuple[int, int, int, int]) -> None:
    words = plan((4, 30, 1, 1)).pack()
    words[8:12] = row
    with pytest.raises(ValueError, match="step plan"):
        StepPlan.unpack(words)
