"""Quantised checkpoints of others over two ranks, which cut groups and words, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from partitioning.checkpoint import open_checkpoint
from partitioning.checkpoint.tensors import model_tensors
from partitioning.plan import Span
from partitioning.quantised import Channels, FloatCodes, Quantised
from tests.oracle.references import Reference, prompts_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_quantised import float_twin, make_awq, make_compressed, make_gptq
from workers.local import LocalReplica
from workers.request import SamplingParams

LENGTHS = (5, 21)
STEPS = 16

FOUR = {"num_bits": 4, "strategy": "group", "group_size": 32}
FLOATS = {"num_bits": 8, "type": "float", "strategy": "channel"}
COMPRESSED: dict[str, tuple[str, dict[str, Any]]] = {
    "4 bits, groups of 32": ("pack-quantized", FOUR),
    "4 bits, zero points": ("pack-quantized", FOUR | {"symmetric": False}),
    "4 bits, groups of 16": ("pack-quantized", FOUR | {"group_size": 16}),
    "4 bits, outputs": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}),
    "8 bits, packed, groups": ("pack-quantized", FOUR | {"num_bits": 8}),
    "8 bits, packed, zero points": ("pack-quantized", FOUR | {"num_bits": 8, "symmetric": False}),
    "8 bits, outputs": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "8 bits, zero points": ("naive-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "8 bits, matrices": ("int-quantized", {"num_bits": 8, "strategy": "tensor"}),
    "8-bit floats": ("float-quantized", FLOATS),
    "8-bit floats, groups": ("float-quantized", FLOATS | {"strategy": "group", "group_size": 32}),
    "8-bit floats, matrices": ("float-quantized", FLOATS | {"strategy": "tensor"}),
}
HELD = {"4 bits, groups of 32", "4 bits, zero points", "4 bits, outputs", "8 bits, packed, groups", "8 bits, outputs"}
HELD |= {"8 bits, matrices"}
HELD_ON_GPUS = HELD | {"8-bit floats", "8-bit floats, groups", "8-bit floats, matrices"}

USUAL = ("4 bits, groups of 32", "8 bits, outputs")
NAMES = [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in COMPRESSED]


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors_mean_what_their_own_library_unpacks(tmp_path: Path, name: str) -> None:
    kind, weights = COMPRESSED[name]
    folder = make_compressed(tmp_path, weights, kind)
    _means_its_twin(folder, held=name in HELD)
    with open_checkpoint(folder) as packed:
        down = packed.read_quantised("model.layers.1.mlp.down_proj.weight", kind="cuda")
        assert (down is not None) == (packed.spec.gpu_packed_bits != 0) == (name in HELD_ON_GPUS)


@pytest.mark.parametrize("name", NAMES)
def test_compressed_tensors_give_the_tokens_of_transformers_over_two_ranks(tmp_path: Path, name: str) -> None:
    kind, weights = COMPRESSED[name]
    folder = make_compressed(tmp_path, weights, kind)
    # transformers 5.23 does not open packed zero points: the library's own decompression stands in for it.
    reference = Reference(folder if weights.get("symmetric", True) else float_twin(folder))
    _tokens_are_those_of(reference, folder)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("bits", "group", "symmetric", "ordered"), [(4, 32, True, False), (4, 32, False, True)])
def test_gptq_checkpoints_mean_the_weights_that_were_packed(
    tmp_path: Path, bits: int, group: int, symmetric: bool, ordered: bool, version: int
) -> None:
    folder = make_gptq(tmp_path, bits, group, symmetric=symmetric, ordered=ordered, version=version)
    _means_its_twin(folder, held=not ordered)
    if ordered and version == 1:
        _tokens_are_those_of(Reference(float_twin(folder)), folder)


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (2, 16), (4, 16)])
def test_gptq_checkpoints_of_other_sizes(tmp_path: Path, bits: int, group: int) -> None:
    folder = make_gptq(tmp_path, bits, group, symmetric=True)
    _means_its_twin(folder, held=bits == 8)


@pytest.mark.parametrize("group", [32, 16])
def test_awq_checkpoints_mean_the_weights_that_were_packed(tmp_path: Path, group: int) -> None:
    folder = make_awq(tmp_path, group)
    _means_its_twin(folder, held=group == 32)
    if group == 32:
        _tokens_are_those_of(Reference(float_twin(folder)), folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_that_are_kept_give_the_logits_of_the_weights_that_they_mean(tmp_path: Path, dtype: str) -> None:
    folder = make_gptq(tmp_path, 4, 32, symmetric=False)
    twin = Reference(float_twin(folder))
    (prompt,) = prompts_of((33,), twin.vocab_size)
    plan = plan_for(folder, tp=2, dtype=dtype)
    with thread_replica(plan, config_for(plan)) as replica:
        ours = _logprobs(replica, prompt, twin.vocab_size)
    expected = twin.logits(prompt).log_softmax(-1)
    assert (ours - expected).abs().max() / expected.abs().max() < (1e-4 if dtype == "float32" else 0.06)


@pytest.mark.parametrize("tp", [1, 3])
def test_w8a8_differs_from_its_weights_by_the_rounding_of_activations(tmp_path: Path, tp: int) -> None:
    folder = make_compressed(tmp_path, {"num_bits": 8, "strategy": "channel"}, "int-quantized", inputs=True)
    with open_checkpoint(folder) as checkpoint:
        assert 8 < checkpoint.spec.packed_bits < 8.5
    _slices_are_those_of_the_whole(folder)
    rounding, plain = Reference(folder), Reference(float_twin(folder))  # the former rounds them too
    (prompt,) = prompts_of((33,), plain.vocab_size)
    plan = plan_for(folder, tp=tp, dtype="bfloat16")
    with thread_replica(plan, config_for(plan)) as replica:
        ours = _logprobs(replica, prompt, plain.vocab_size)
    for reference in (rounding, plain):
        expected = reference.logits(prompt).log_softmax(-1)
        assert (ours - expected).abs().max() / expected.abs().max() < 0.1


def _logprobs(replica: LocalReplica, prompt: list[int], vocab_size: int) -> torch.Tensor:
    ((_, outputs),) = generate(replica, [prompt], SamplingParams(max_tokens=1, logprobs=vocab_size))
    ids, values = zip(*outputs[0].logprobs[0].top, strict=True)
    return torch.empty(vocab_size).index_copy_(0, torch.tensor(ids), torch.tensor(values))


def _means_its_twin(folder: Path, held: bool) -> None:
    with open_checkpoint(folder) as packed, open_checkpoint(float_twin(folder)) as plain:
        for name in model_tensors(plain.spec):
            torch.testing.assert_close(packed.read(name), plain.read(name), atol=1e-6, rtol=1e-5)
        assert (packed.read_quantised("model.layers.1.mlp.down_proj.weight") is not None) == held
        assert (packed.spec.packed_bits != 0) == held
    _slices_are_those_of_the_whole(folder)


def _tokens_are_those_of(reference: Reference, folder: Path) -> None:
    prompts = prompts_of(LENGTHS, reference.vocab_size)
    plan = plan_for(folder, tp=2)
    with thread_replica(plan, config_for(plan)) as replica:
        results = generate(replica, prompts, SamplingParams(max_tokens=STEPS, ignore_eos=True))
    assert [tokens for tokens, _ in results] == [reference.greedy(prompt, STEPS) for prompt in prompts]


def _slices_are_those_of_the_whole(folder: Path) -> None:
    """Also of rows and columns that no word, group or block divides; and blocks mean what floats say."""
    with open_checkpoint(folder) as checkpoint:
        for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight"):
            whole = checkpoint.read(name)
            inputs = whole.shape[1]
            for rows in (Span(0, len(whole)), Span(3, 61), Span(64, 65), Span(7, 7)):
                for cols in (Span(0, inputs), Span(5, inputs - 3), Span(32, 96), Span(40, 40)):
                    part = whole[rows.start : rows.stop, cols.start : cols.stop]
                    assert torch.equal(checkpoint.read(name, rows, cols), part)
                    blocks = checkpoint.read_quantised(name, rows, cols, kind="cuda")
                    if isinstance(blocks, Channels | FloatCodes):
                        assert torch.equal(blocks.dequantise(), part)
                    elif isinstance(blocks, Quantised):
                        torch.testing.assert_close(blocks.dequantise(), part, atol=2e-3, rtol=2e-3)
