"""The best of a head's outputs, found without most of them, is that of all."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.replicas import plan_for
from tests.tiny_models import make_tiny
from tests.workers.native.test_products import native as native  # the fixture
from tests.workers.native.test_stage import both, logits, step
from workers.native.interface import declare
from workers.native.screen import Screen
from workers.sampling.draws import DRAW

_VOCAB = 5003  # of which no panel's width is a divisor


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
    return torch.cat([head[: _VOCAB // 2 + 1], head[: _VOCAB // 2]])


_HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda head: head,
    "alike": _alike,
    "uneven": _uneven,
    "twice": _twice,
    "zero": torch.zeros_like,
    "all the same": lambda head: head[:1].expand(len(head), -1),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", _HEADS)
def test_the_best_of_few_rows_is_that_of_all_logits(native: ctypes.CDLL, tmp_path: Path, kind: str, dtype: str) -> None:
    path = make_tiny(tmp_path, "llama", vocab_size=_VOCAB)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = _HEADS[kind](tensors["lm_head.weight"]).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    plan = plan_for(path, dtype=dtype)
    rng = np.random.default_rng(7)
    for threads in (1, 3):
        stage, _ = both(native, plan, threads)
        for rows in (1, 2, 3, 4):
            prompts = rng.integers(0, _VOCAB, (rows, 9)).tolist()
            planned = step(1, plan.kv_block_size, *((slot, 0, prompt) for slot, prompt in enumerate(prompts)))
            all_of_them = logits(stage, planned)
            for temperature in (0.0, 0.7, 100.0):
                draws = np.zeros(rows, DRAW)
                draws["temperature"], draws["top_p"], draws["seed"] = temperature, 1.0, np.arange(rows)
                best = stage.run(planned, None, draws).best
                assert best is not None
                assert best[1].tolist() == stage.drawing.draw(all_of_them, draws).tolist()
                if temperature == 0:
                    assert best[0].tolist() == all_of_them.amax(dim=1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(49, 72), (16, 32), (1, 1), (33, 95)])
def test_a_copy_knows_how_far_off_it_is(native: ctypes.CDLL, shape: tuple[int, int], dtype: torch.dtype) -> None:
    declare(native)
    head = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    head[::5] *= 1e-7  # scales that a half holds with few bits, or not at all
    head[1::7] *= 1e3
    screen = Screen(native, head)
    # Rows of one value are exact in 8 bits.
    copy, ones = torch.empty(shape[1], shape[0]), 127 * torch.eye(shape[1])
    native.phx_product(screen.native.copy, ones.data_ptr(), shape[1], copy.data_ptr(), 1, 1)
    copy = copy.T.double() / 127
    lost = (head.double() - copy).norm(dim=1)
    assert (lost < 0.01 * head.double().norm(dim=1) + 2e-6).all()
    for found, least in ((screen.lost, lost), (screen.length, lost + copy.norm(dim=1))):
        assert (found[: len(head)] >= least).all()
        torch.testing.assert_close(found[: len(head)].double(), least, rtol=1e-4, atol=1e-12)
        assert not found[len(head) :].any()
