"""The best of a head's outputs, found without most of them, is that of all."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from partitioning.screening import ScreenShape
from tests.replicas import plan_for
from tests.tiny_models import make_tiny
from tests.workers.native.test_products import native as native  # the fixture
from tests.workers.native.test_stage import both, logits, step
from workers.native.interface import declare
from workers.native.screen import Screen
from workers.sampling.draws import DRAW

# Dtype, weights, and outputs of the head, of which no panel's width is a divisor: a copy in 4 bits of a head that is
# turned, for those that are large beside their 72 inputs, else in 8 bits.
_FORMS = {
    "float32": ("float32", "auto", 5003),
    "bfloat16": ("bfloat16", "auto", 5003),
    "groups of 8 bits": ("bfloat16", "int8", 5003),
    "float32, as it is": ("float32", "auto", 1003),
    "bfloat16, as it is": ("bfloat16", "auto", 1003),
}


def _alike(head: Tensor) -> Tensor:
    """Hundreds of rows that 8 bits cannot tell from the likeliest."""
    return head[:1] + head * 1e-3


def _uneven(head: Tensor) -> Tensor:
    """Rows of very different lengths, in one group of inputs or another."""
    head = head * torch.logspace(-12, 4, len(head)).unsqueeze(1)
    head[::3, :32] *= 1e3
    return head


def _twice(head: Tensor) -> Tensor:
    """Of every row there are two, far apart: the first is the best."""
    half = len(head) // 2
    return torch.cat([head[: half + 1], head[:half]])


def _flat(head: Tensor) -> Tensor:
    """Rows that differ in a few directions alone, beside what all have in common."""
    return head[:, :3] @ head[:3] + 10 * head[0]


_HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda head: head,
    "alike": _alike,
    "uneven": _uneven,
    "twice": _twice,
    "flat": _flat,
    "zero": torch.zeros_like,
    "all the same": lambda head: head[:1].expand(len(head), -1),
}


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("kind", _HEADS)
def test_the_best_of_few_rows_is_that_of_all_logits(native: ctypes.CDLL, tmp_path: Path, kind: str, form: str) -> None:
    dtype, weights, vocab = _FORMS[form]
    path = make_tiny(tmp_path, "llama", vocab_size=vocab)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = _HEADS[kind](tensors["lm_head.weight"]).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    plan = plan_for(path, dtype=dtype, weights=weights)
    rng = np.random.default_rng(7)
    for threads, temperature in itertools.product((1, 3), (0.0, 0.7, 100.0)):
        stage, _ = both(native, plan, threads)
        for rows in (1, 2, 3, 4):
            prompts = rng.integers(0, vocab, (rows, 9)).tolist()
            planned = step(1, plan.kv_block_size, *((slot, 0, prompt) for slot, prompt in enumerate(prompts)))
            all_of_them = logits(stage, planned)
            draws = np.zeros(rows, DRAW)
            draws["temperature"], draws["top_p"], draws["seed"] = temperature, 1.0, np.arange(rows)
            best = stage.run(planned, None, draws).best
            assert best is not None
            assert best[1].tolist() == stage.drawing.draw(all_of_them, draws).tolist()
            if temperature == 0:
                assert best[0].tolist() == all_of_them.amax(dim=1).tolist()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(49, 72), (16, 32), (1, 1), (33, 95), (5000, 40)])
def test_a_copy_knows_how_far_off_it_is(
    native: ctypes.CDLL, shape: tuple[int, int], dtype: torch.dtype, bits: int
) -> None:
    declare(native)
    outputs, inputs = shape
    head = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    head[::5] *= 1e-7  # scales that a half holds with few bits, or not at all
    head[1::7] *= 1e3
    screen = Screen(native, head, ScreenShape(outputs, inputs, bits, turned=bits == 4))
    columns = screen.shape.columns
    # Rows of one value are exact in 8 bits.
    copy, ones = torch.empty(columns, outputs), 127 * torch.eye(columns)
    native.phx_product(screen.native.copy, ones.data_ptr(), columns, copy.data_ptr(), 1, 1)
    copy, meant = copy.T.double() / 127, head.double()
    if screen.turn is not None:
        turn = screen.turn.double()[:, :inputs]
        directions, meant = turn[:-33], (meant - turn[-1]) @ turn[:-33].T
        torch.testing.assert_close(directions.T @ directions, torch.eye(inputs).double(), rtol=0, atol=1e-6)
        assert turn[-33:-1].equal(directions[-32:])
        copy = torch.cat([copy[:, :-64], copy[:, -64:-32] + copy[:, -32:]], dim=1)
    first = 0
    for found, end, kept in zip(screen.lost, screen.native.ends, screen.native.kept, strict=True):
        some, length = copy[:, first:end], meant.norm(dim=1)
        lost = (meant[:, first:end] - some).norm(dim=1)
        assert (found[:outputs] >= lost).all()
        assert (found[:outputs] * kept >= some.norm(dim=1)).all()
        assert (found[:outputs] <= 0.25 * length + 2e-6).all()
        assert not found[outputs:].any()
        first = end
    assert first >= meant.shape[1]
