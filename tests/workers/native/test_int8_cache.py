"""Keys and values in 8 bits: the native stage against the torch one, and both against keys and values as they are.

In float32 the engines differ where a sum in another order rounds a number to the next code, and by queries' and
weights' 16 bits in the native one.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from partitioning.model_spec import DType
from tests.replicas import plan_for
from tests.tiny_models import FAMILIES, make_tiny
from tests.workers.native.test_products import native as native  # the fixture
from tests.workers.native.test_stage import both, compare, conversation, logits, step
from workers.model.kept_rows import Int8Rows

ENGINES = 5e-3  # the largest difference between the engines in float32, as a share of the largest logit
ROUNDED = 0.05  # and in bfloat16, where many rows read keys and values that the native one has widened
EIGHT_BITS = 0.04  # and that between 8 bits and none


@pytest.mark.parametrize("block_size", [16, 5, 48])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_logits_are_those_of_torch(native: ctypes.CDLL, tmp_path: Path, family: str, block_size: int) -> None:
    compare(native, plan_for(make_tiny(tmp_path, family), kv_block_size=block_size, kv_cache="int8"), ENGINES)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_logits_differ_by_its_rounding_alone(native: ctypes.CDLL, tmp_path: Path, family: str) -> None:
    compare(native, plan_for(make_tiny(tmp_path, family), dtype="bfloat16", kv_cache="int8"), ROUNDED)


@pytest.mark.parametrize(
    "overrides",
    [
        {"hidden_size": 75, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 10},
        {"hidden_size": 70, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 34, "vocab_size": 17},
        {"hidden_size": 33, "intermediate_size": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2},
        {"hidden_size": 80, "num_attention_heads": 20, "num_key_value_heads": 1, "head_dim": 128},
    ],
    ids=["10", "34", "2", "128"],
)
@pytest.mark.parametrize("block_size", [16, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", ENGINES), ("bfloat16", ROUNDED)])
def test_odd_heads(
    native: ctypes.CDLL, tmp_path: Path, dtype: DType, tolerance: float, overrides: dict[str, int], block_size: int
) -> None:
    path = make_tiny(tmp_path, "llama", **overrides)
    compare(native, plan_for(path, dtype=dtype, kv_block_size=block_size, kv_cache="int8"), tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_eight_bits_change_logits_by_little(native: ctypes.CDLL, tmp_path: Path, family: str, dtype: str) -> None:
    plan = plan_for(make_tiny(tmp_path, family), dtype=dtype, kv_cache="int8")  # type: ignore[arg-type]
    stages = list(zip(both(native, plan), both(native, replace(plan, kv_cache="auto")), strict=True))
    for planned in conversation(plan.model.vocab_size, plan.kv_block_size):
        for stage, reference in stages:
            expected = logits(reference, planned)
            difference = (logits(stage, planned) - expected).abs().max() / expected.abs().max()
            assert 0 < difference <= EIGHT_BITS


def test_a_prompt_sees_the_same_keys_in_one_chunk_as_in_several(native: ctypes.CDLL, tmp_path: Path) -> None:
    plan = plan_for(make_tiny(tmp_path, "llama"), kv_cache="int8")
    prompt = np.random.default_rng(3).integers(0, plan.model.vocab_size, 45).tolist()
    for whole, cut in zip(both(native, plan), both(native, plan), strict=True):
        expected = logits(whole, step(1, 16, (0, 0, prompt)))
        for number, (begin, end) in enumerate([(0, 17), (17, 18), (18, 45)]):
            found = logits(cut, step(number + 1, 16, (0, begin, prompt[begin:end])))
        assert (found - expected).abs().max() <= ENGINES / 5 * expected.abs().max()


def test_nothing_but_zeros_has_a_scale_too(native: ctypes.CDLL, tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "llama")
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if "k_proj" in name or "v_proj" in name:
            tensors[name].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    compare(native, plan_for(path, kv_cache="int8"), tolerance=2e-5)


def test_long_decodes_are_shared_out_over_the_context(native: ctypes.CDLL, tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "llama", max_position_embeddings=2048)
    plan = plan_for(path, max_model_len=2048, max_batch_tokens=1800, kv_cache_tokens=8192, kv_cache="int8")
    ours, theirs = both(native, plan, threads=3, max_model_len=2048, max_batch_tokens=1800)
    prompt = np.random.default_rng(2).integers(0, 307, 1700).tolist()
    for planned in (step(1, 16, (0, 0, prompt)), step(2, 16, (0, 1700, [5]))):
        expected = logits(theirs, planned)
        assert (logits(ours, planned) - expected).abs().max() <= ENGINES * expected.abs().max()


def test_quantised_rows_are_off_by_half_a_step() -> None:
    rows = torch.randn(7, 3, 10, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 7)[:, None, None]
    rows[2, 1] = 0
    kept = Int8Rows(4, 5, 3, 10, torch.float32, torch.device("cpu"))
    slots = torch.tensor([0, 3, 19, 5, 6, 7, 11])
    written = kept.write(slots, rows)
    steps = rows.abs().amax(dim=2, keepdim=True) / 127
    assert ((written - rows).abs() <= 0.501 * steps).all()
    torch.testing.assert_close(kept.read(torch.tensor([0, 1, 2, 3]))[slots], written, rtol=0, atol=0)
