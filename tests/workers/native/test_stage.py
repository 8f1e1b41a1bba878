"""The native stage against the torch one, step by step, on tiny models that no vector or tile divides."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from partitioning.checkpoint import open_checkpoint
from partitioning.plan import Plan
from partitioning.quantised import Channels, Quantised
from tests.replicas import config_for, plan_for
from tests.tiny_gguf import make_tiny_gguf
from tests.tiny_models import FAMILIES, make_tiny
from tests.tiny_quantised import make_compressed
from tests.workers.native.test_products import native as native  # the fixture
from workers.collectives import SoloGroup
from workers.model.stage import Stage, TorchStage
from workers.model.torch_kernels import TorchKernels
from workers.model.weights import WeightReader
from workers.native.stage import NativeStage
from workers.sampling.draws import DRAW
from workers.sampling.noise import gumbel, token_keys
from workers.seeds import row_keys
from workers.step_plan import ADMISSION, Kind, StepPlan

CPU = torch.device("cpu")


def step(number: int, block_size: int, *rows: tuple[int, int, list[int]]) -> StepPlan:
    """Each row: slot, position of the first token, tokens. Slot s owns every fourth block from s on."""
    updates = [
        (slot, index, 4 * index + slot)
        for slot, position, tokens in rows
        for index in range((position + len(tokens) - 1) // block_size + 1)
    ]
    return StepPlan(
        Kind.RUN,
        number,
        np.empty(0, dtype=ADMISSION),
        np.array([(slot, position, len(tokens), 1) for slot, position, tokens in rows], dtype=np.int32),
        np.array(updates, dtype=np.int32),
        np.array([token for _, _, tokens in rows for token in tokens], dtype=np.int32),
    )


def conversation(vocab_size: int, block_size: int) -> Iterator[StepPlan]:
    """Long and short prompts, in one chunk and in several, beside decodes."""
    rng = np.random.default_rng(5)

    def tokens(count: int) -> list[int]:
        return rng.integers(0, vocab_size, count).tolist()

    yield step(1, block_size, (0, 0, tokens(37)), (1, 0, tokens(1)))
    yield step(2, block_size, (0, 37, tokens(1)), (1, 1, tokens(1)), (2, 0, tokens(50)))
    yield step(3, block_size, (2, 50, tokens(21)), (0, 38, tokens(1)), (1, 2, tokens(3)))
    for position in range(4):
        yield step(4 + position, block_size, (2, 71 + position, tokens(1)), (1, 5 + position, tokens(1)))


def both(native: ctypes.CDLL, plan: Plan, threads: int | None = None, **options: object) -> tuple[Stage, Stage]:
    """The native stage, with so many threads, and the torch one."""
    config = config_for(plan, **options)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with open_checkpoint(Path(plan.model_path)) as checkpoint:
            weights = WeightReader(checkpoint, plan, plan.ranks[0])
            torch_stage = TorchStage(
                weights, plan, plan.ranks[0], config, SoloGroup(), CPU, TorchKernels(plan, plan.ranks[0], CPU)
            )
            return NativeStage(native, weights, plan, plan.ranks[0], config, SoloGroup()), torch_stage
    finally:
        torch.set_num_threads(before)


def logits(stage: Stage, plan: StepPlan) -> Tensor:
    result = stage.run(plan, None, draws=None)
    assert result.logits is not None
    return result.logits


def compare(native: ctypes.CDLL, plan: Plan, tolerance: float) -> None:
    """Every step's logits, relative to the largest; and the greedy choice of each row."""
    ours, theirs = both(native, plan)
    for number, planned in enumerate(conversation(plan.model.vocab_size, plan.kv_block_size)):
        expected = logits(theirs, planned)
        found = logits(ours, planned)
        assert (found - expected).abs().max() <= tolerance * expected.abs().max(), f"step {number + 1}"
        best = ours.run(planned, None, draws=np.zeros(len(found), DRAW)).best
        assert best is not None
        values, ids = best
        assert ids.tolist() == found.argmax(dim=1).tolist()
        torch.testing.assert_close(torch.from_numpy(values), found.amax(dim=1))


@pytest.mark.parametrize("block_size", [16, 5, 48])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_logits_are_those_of_torch(native: ctypes.CDLL, tmp_path: Path, family: str, block_size: int) -> None:
    plan = plan_for(make_tiny(tmp_path, family), kv_block_size=block_size)
    compare(native, plan, tolerance=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_logits_differ_by_its_rounding_alone(native: ctypes.CDLL, tmp_path: Path, family: str) -> None:
    compare(native, plan_for(make_tiny(tmp_path, family), dtype="bfloat16"), tolerance=0.04)


def test_a_pruned_model_differs_by_rounding_alone(native: ctypes.CDLL, tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "llama")
    tensors = load_file(path / "model.safetensors")
    for name, tensor in tensors.items():
        if name.startswith("model.layers") and tensor.dim() == 2:
            zeros = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(3)) < 0.5
            tensors[name] = tensor.masked_fill(zeros, 0.0)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    compare(native, plan_for(path, dtype="bfloat16"), tolerance=0.04)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_quantised_weights_differ_by_the_rounding_of_activations_alone(
    native: ctypes.CDLL, tmp_path: Path, family: str, weights: str
) -> None:
    path = make_tiny(tmp_path, family)
    compare(native, plan_for(path, dtype="bfloat16", weights=weights), tolerance=0.08)


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_channels_differ_by_the_rounding_of_activations_alone(
    native: ctypes.CDLL, tmp_path: Path, weights: str
) -> None:
    """Embedding and head are floats in the file, and groups of 32 with int8."""
    scheme = {"num_bits": 8, "strategy": "channel"}
    sizes = {"hidden_size": 100, "num_attention_heads": 10, "num_key_value_heads": 5, "intermediate_size": 37}
    path = make_compressed(tmp_path, scheme, "int-quantized", "qwen2", inputs=True, head_dim=10, **sizes)
    plan = plan_for(path, dtype="bfloat16", weights=weights)
    with open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, plan, plan.ranks[0])
        embedding = reader.ends().embedding
        assert isinstance(embedding, Quantised if weights == "int8" else Tensor)
        for layer in reader.layers():
            assert all(isinstance(matrix, Channels) for matrix in (layer.qkv, layer.out, layer.gate, layer.down))
    compare(native, plan, tolerance=0.08)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_of_gguf_files_are_used_as_they_are(native: ctypes.CDLL, tmp_path: Path, kind: str) -> None:
    folder = make_tiny(tmp_path / "hf", "llama", hidden_size=288, intermediate_size=224, initializer_range=0.05)
    plan = plan_for(make_tiny_gguf(tmp_path / "m.gguf", folder, kind=kind), dtype="bfloat16")
    assert plan.weights == "auto"
    compare(native, plan, tolerance=0.05)


@pytest.mark.parametrize("threads", [1, 3])
def test_tokens_drawn_in_the_head_are_those_drawn_from_its_logits(
    native: ctypes.CDLL, tmp_path: Path, threads: int
) -> None:
    """Greedy and random rows in one batch, few and many; the model's vocabulary is no multiple of a vector."""
    plan = plan_for(make_tiny(tmp_path, "llama"), dtype="bfloat16")
    stage, _ = both(native, plan, threads, max_running=40)
    for rows in (1, 3, 40):
        planned = step(1, plan.kv_block_size, *((slot, 0, [slot + 1]) for slot in range(rows)))
        planned.block_updates[:, 2] = planned.block_updates[:, 0]
        draws = np.zeros(rows, dtype=DRAW)
        draws["temperature"] = np.arange(rows) % 3 * 0.8
        draws["top_p"], draws["seed"] = 1.0, np.arange(rows)
        drawn = logits(stage, planned)
        tokens = stage.drawing.draw(drawn, draws)
        best = stage.run(planned, None, draws).best
        assert best is not None
        assert best[1].tolist() == tokens.tolist()
        random = draws["temperature"] > 0
        noise = gumbel(token_keys(tokens), torch.from_numpy(row_keys(draws["seed"], draws["position"])))
        temperatures = torch.from_numpy(np.where(random, draws["temperature"], 1))
        scores = drawn.gather(1, tokens.long().unsqueeze(1))[:, 0] / temperatures
        torch.testing.assert_close(torch.from_numpy(best[0]), scores + noise.diagonal() * torch.from_numpy(random))


def test_odd_shapes(native: ctypes.CDLL, tmp_path: Path) -> None:
    shapes = (
        {"hidden_size": 75, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 10},
        {"hidden_size": 70, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 34, "vocab_size": 17},
        {"hidden_size": 33, "intermediate_size": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2},
    )
    for number, overrides in enumerate(shapes):
        path = make_tiny(tmp_path / str(number), "llama", **overrides)
        compare(native, plan_for(path), tolerance=2e-5)
        compare(native, plan_for(path, dtype="bfloat16"), tolerance=0.04)


def test_long_decodes_are_shared_out_over_the_context(native: ctypes.CDLL, tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "llama", max_position_embeddings=2048)
    plan = plan_for(path, max_model_len=2048, max_batch_tokens=1800, kv_cache_tokens=8192)
    ours, theirs = both(native, plan, threads=3, max_model_len=2048, max_batch_tokens=1800)
    prompt = np.random.default_rng(2).integers(0, 307, 1700).tolist()
    for planned in (step(1, 16, (0, 0, prompt)), step(2, 16, (0, 1700, [5]))):
        torch.testing.assert_close(logits(ours, planned), logits(theirs, planned), rtol=1e-4, atol=1e-4)
