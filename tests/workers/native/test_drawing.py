"""Native draws against torch's, at shards that no vector divides, extreme temperatures and logits that are equal."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from partitioning.plan import Span
from tests.workers.native.test_products import native as native  # the fixture
from tests.workers.test_collectives import on_every_rank
from workers.collectives import Group, SharedMemoryGroup, SoloGroup
from workers.native.drawing import NativeDrawing
from workers.native.team import Team
from workers.sampling.draws import DRAW, Draws
from workers.sampling.torch_drawing import TorchDrawing

CPU = torch.device("cpu")
WIDTHS = (1, 7, 16, 17, 1000, 4096, 49152)
ROWS = 9
FILTERS: dict[str, dict[str, Any]] = {
    "top-k 1": {"top_k": 1},
    "top-k": {"top_k": 50},
    "top-k beyond all": {"top_k": 100_000},
    "top-k, top-p": {"top_k": 60, "top_p": 0.8},
    "all three": {"top_k": 200, "top_p": 0.9, "min_p": 0.01},
    "top-p": {"temperature": 0.7, "top_p": 0.95},
    "wide top-p": {"temperature": 3.0, "top_p": 0.97},
    "narrow top-p": {"top_p": 0.05},
    "min-p": {"temperature": 1.5, "min_p": 0.02},
    "top-p, min-p": {"top_p": 0.9, "min_p": 0.05},
    "cold": {"temperature": 1e-3, "top_p": 0.9},
    "hot": {"temperature": 100.0, "top_p": 0.5},
}


def draws_of(rows: int, **parameters: Any) -> Draws:
    draws = np.zeros(rows, dtype=DRAW)
    draws["temperature"], draws["top_p"] = 1.0, 1.0
    draws["seed"], draws["position"] = 2**63 + 3, np.arange(rows)
    for name, value in parameters.items():
        draws[name] = value
    return draws


def logits_of(rows: int, width: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(width))


def natively(native: ctypes.CDLL, logits: Tensor, draws: Draws, first: int = 0, threads: int = 1) -> list[int]:
    width = logits.shape[1]
    shard, team = Span(first, first + width), Team(native, threads, False)
    return NativeDrawing(native, team, shard, first + width, SoloGroup()).draw(logits, draws).tolist()


def in_torch(logits: Tensor, draws: Draws, first: int = 0) -> list[int]:
    shard = Span(first, first + logits.shape[1])
    return TorchDrawing(shard, shard.stop, SoloGroup(), CPU).draw(logits.clone(), draws).tolist()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1e-20, 1e-3, 0.7, 1.0, 100.0])
@pytest.mark.parametrize("width", WIDTHS)
def test_tokens_are_those_of_torch(native: ctypes.CDLL, width: int, temperature: float, threads: int) -> None:
    logits, draws = logits_of(ROWS, width), draws_of(ROWS, temperature=temperature)
    assert natively(native, logits, draws, 5000, threads) == in_torch(logits, draws, 5000)


def test_many_seeds_and_positions_have_the_noise_of_torch(native: ctypes.CDLL) -> None:
    rows = 4000
    logits = logits_of(rows, 100, scale=0.1)
    draws = draws_of(rows, seed=np.arange(rows, dtype=np.uint64) << np.uint64(40), position=np.arange(rows) % 7)
    assert natively(native, logits, draws) == in_torch(logits, draws)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("width", WIDTHS)
def test_filtered_tokens_are_those_of_torch(native: ctypes.CDLL, width: int, name: str) -> None:
    rows = 40
    logits, draws = logits_of(rows, width), draws_of(rows, **FILTERS[name])
    assert natively(native, logits, draws, threads=2) == in_torch(logits, draws)


def mixed(rows: int) -> Draws:
    """Greedy, random and all kinds of filters in one batch."""
    draws = draws_of(rows)
    kinds = [{"temperature": 0.0}, {"temperature": 0.0, "top_p": 0.5}, {}, *FILTERS.values()]
    for row in range(rows):
        for name, value in kinds[row % len(kinds)].items():
            draws[row][name] = value
    return draws


def test_each_row_of_a_mixed_batch_is_drawn_as_alone(native: ctypes.CDLL) -> None:
    rows = 45
    logits, draws = logits_of(rows, 1000), mixed(rows)
    together = natively(native, logits, draws, threads=2)
    assert together == [natively(native, logits[i : i + 1], draws[i : i + 1])[0] for i in range(rows)]
    assert together == in_torch(logits, draws)


@pytest.mark.parametrize("threads", [1, 2])
def test_of_equal_scores_the_lowest_id_is_taken(native: ctypes.CDLL, threads: int) -> None:
    logits = torch.zeros(8, 20_000)
    logits[:, [9000, 9001, 15_000, 18_000]] = 1.0
    for parameters in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}):
        assert natively(native, logits, draws_of(8, **parameters), 100, threads) == [9100] * 8
    logits[:, 9000:] = 1e4  # where scores have no bits left for noise
    assert natively(native, logits, draws_of(8, temperature=1e-10), 100, threads) == [9100] * 8


@pytest.mark.parametrize("parameters", [{"temperature": 0.0}, {"temperature": 1e-20}, {}, *FILTERS.values()])
@pytest.mark.parametrize("width", WIDTHS)
def test_tokens_at_minus_infinity_are_never_drawn(native: ctypes.CDLL, width: int, parameters: dict[str, Any]) -> None:
    logits = torch.full((ROWS, width), -torch.inf)
    allowed = sorted({0, width // 3, width - 1})
    logits[:, allowed] = torch.tensor([1.0, 2.0, 1.5])[: len(allowed)]
    assert set(natively(native, logits, draws_of(ROWS, **parameters))) <= set(allowed)


@pytest.mark.parametrize("value", [-torch.inf, torch.nan, torch.inf])
def test_rows_without_finite_logits_give_some_token(native: ctypes.CDLL, value: float) -> None:
    tokens = natively(native, torch.full((45, 100), value), mixed(45))
    assert all(0 <= token < 100 for token in tokens)


@pytest.mark.parametrize("cuts", [(0, 500, 1000), (0, 1, 1000), (0, 0, 700, 1000), (0, 333, 333, 1000)])
def test_shards_draw_what_the_whole_vocabulary_does(native: ctypes.CDLL, cuts: tuple[int, ...]) -> None:
    rows = 150
    logits, draws = logits_of(rows, 1000), mixed(rows)
    logits[:, ::7] = logits[:, ::7].round()  # with equal ones, on both sides of a cut
    whole = natively(native, logits, draws)

    def body(group: Group) -> list[int]:
        shard = Span(cuts[group.rank], cuts[group.rank + 1])
        drawing = NativeDrawing(native, Team(native, 1, False), shard, 1000, group)
        return drawing.draw(logits[:, shard.start : shard.stop].contiguous(), draws).tolist()

    def calling_back(group: SharedMemoryGroup) -> list[int]:
        return body(_Disguised(group))

    size = len(cuts) - 1
    assert on_every_rank(size, body) == [whole] * size
    assert on_every_rank(size, calling_back) == [whole] * size


class _Disguised(SoloGroup):
    """A group that the library does not know."""

    def __init__(self, group: SharedMemoryGroup) -> None:
        self.rank, self.size, self.all_gather = group.rank, group.size, group.all_gather  # type: ignore[method-assign]
