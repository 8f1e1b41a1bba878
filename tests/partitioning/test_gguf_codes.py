"""The blocks of GGUF files as they are: the same values as when they are read as floats."""

from __future__ import annotations

import random
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from partitioning.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from partitioning.plan import Span
from tests.tiny_gguf import make_tiny_gguf
from tests.tiny_models import make_tiny

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
KINDS = {"Q8_0": (8, False), "Q4_0": (4, False), "Q4_1": (4, True), "Q4_K": (4, True)}
MATRICES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",  # these two have llama.cpp's order of rows
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.1.self_attn.o_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
]


def _tamed(data: npt.NDArray[np.uint8]) -> None:
    """Gives random Q4_K blocks, in place, factors as quantisers write them."""
    blocks = data.reshape(-1, 144)
    blocks[:, :4] = np.frombuffer(np.float16([0.0031, 0.0127]).tobytes(), np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny llama in every kind of blocks."""
    folder = tmp_path_factory.mktemp("quantised")
    plain = make_tiny(folder / "hf", "llama", **SIZES)
    paths = {kind: make_tiny_gguf(folder / f"{kind}.gguf", plain, kind=kind) for kind in (*KINDS, "Q6_K", "F16")}
    for tensor in gguf.GGUFReader(paths["Q4_K"], "r+").tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_K:
            _tamed(tensor.data)
    return paths


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    rows, cols = checkpoint.read(name).shape
    return rows, cols


def _random_span(size: int, granule: int, draw: random.Random) -> Span:
    start, stop = sorted(draw.randrange(size // granule + 1) * granule for _ in range(2))
    return Span(start, stop)


@pytest.mark.parametrize("kind", KINDS)
def test_slices_of_blocks_are_the_values_that_read_gives(files: dict[str, Path], kind: str) -> None:
    bits, has_offsets = KINDS[kind]
    draw = random.Random(kind)
    with open_checkpoint(files[kind]) as checkpoint:
        for name in MATRICES:
            height, width = _shape(checkpoint, name)
            slices = [(None, None), (Span(3, 3), None), (None, Span(64, 64))]
            slices += [(_random_span(height, 1, draw), _random_span(width, 32, draw)) for _ in range(8)]
            for rows, cols in slices:
                made = checkpoint.read_quantised(name, rows, cols)
                assert made is not None
                assert (made.bits, made.offsets is not None) == (bits, has_offsets)
                expected = checkpoint.read(name, rows, cols)
                largest = float(expected.abs().max()) if expected.numel() else 0.0
                # Q4_K's scales and offsets are products, rounded to float16 here.
                bound = 2.0**-10 * 3 * largest if kind == "Q4_K" else 1e-6 * largest
                torch.testing.assert_close(made.dequantise(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_only_the_bytes_of_the_slice_are_read(files: dict[str, Path], kind: str) -> None:
    with open_checkpoint(files[kind]) as checkpoint:
        checkpoint.read_quantised("model.layers.0.mlp.down_proj.weight", Span(5, 9), Span(64, 128))
        assert checkpoint.bytes_read == 4 * 2 * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_inside_a_group_and_vectors_have_no_blocks(files: dict[str, Path], kind: str) -> None:
    with open_checkpoint(files[kind]) as checkpoint:
        down = "model.layers.0.mlp.down_proj.weight"
        assert checkpoint.read_quantised(down, cols=Span(16, 64)) is None
        assert checkpoint.read_quantised(down, cols=Span(0, 40)) is None
        assert checkpoint.read_quantised("model.norm.weight") is None
        assert checkpoint.bytes_read == 0


def test_other_blocks_floats_and_safetensors_are_left_to_read(files: dict[str, Path]) -> None:
    for path in (files["Q6_K"], files["F16"], files["F16"].parent / "hf"):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.read_quantised(MATRICES[0]) is None


def test_names_and_slices_that_do_not_exist_are_errors_as_in_read(files: dict[str, Path]) -> None:
    with open_checkpoint(files["Q8_0"]) as checkpoint:
        with pytest.raises(CheckpointError, match="has no tensor x"):
            checkpoint.read_quantised("x")
        with pytest.raises(CheckpointError, match="reaches outside"):
            checkpoint.read_quantised(MATRICES[0], cols=Span(0, 288))
