"""Quantised checkpoints that contradict themselves, or are of a kind that is not read, are refused by name; and what a
plan says of those that are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from partitioning.checkpoint import CheckpointError, open_checkpoint
from partitioning.devices import parse_topology
from partitioning.plan import Plan, Span
from partitioning.plan_json import plan_from_json, plan_to_json
from partitioning.plan_table import plan_table
from tests.replicas import plan_for
from tests.tiny_quantised import make_compressed, make_gptq

FOUR = {"num_bits": 4, "strategy": "group", "group_size": 32}
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return make_compressed(tmp_path / "packed", FOUR, "pack-quantized")


def configured(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads((folder / "config.json").read_text())
    change(fields["quantization_config"])
    (folder / "config.json").write_text(json.dumps(fields))


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q.update(quant_method="bitsandbytes"), "quant_method 'bitsandbytes'.* is not supported"),
        (lambda q: q.update(quantization_status="frozen"), "quantization_status frozen .*save_compressed=True"),
        (lambda q: q.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config.format sparse-24"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=3), "weights.num_bits"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(group_size=64), "fit none of .* schemes"),
        (lambda q: q.update(quant_method="gptq", bits=4, group_size=32), "do not fit gptq .* mixes formats"),
        (lambda q: q.update(quant_method="awq", bits=4, group_size=32), "do not fit awq .* mixes formats"),
        (lambda q: q.update(quant_method="awq", bits=4, group_size=32, version="gemv"), 'version "gemm"'),
    ],
)
def test_configurations_that_do_not_fit_the_weights_are_refused(
    packed: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    configured(packed, change)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        open_checkpoint(packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{UP}.weight_scale"), rf"{UP}.weight_packed.* fit none of .* mixes formats"),
        (lambda t: t.update({f"{UP}.weight": torch.zeros(160, 288)}), rf"tensor {UP}.weight_packed and 2 more has no"),
        (lambda t: t.update({f"{UP}.qweight": torch.zeros(36, 160)}), rf"tensor {UP}.qweight has no place"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith(UP)], rf"tensor {UP}.weight is missing"),
    ],
)
def test_weights_that_mix_formats_are_refused(
    packed: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    rewritten(packed, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(packed)


def test_a_plain_checkpoint_that_calls_itself_quantised_is_refused(packed: Path) -> None:
    plain = packed / "plain"
    (plain / "config.json").write_text((packed / "config.json").read_text())
    with pytest.raises(CheckpointError, match="speaks of compressed-tensors, but no matrix"):
        open_checkpoint(plain)


def test_groups_that_there_are_not_are_refused_when_they_are_read(tmp_path: Path) -> None:
    folder = make_gptq(tmp_path, 4, 32, symmetric=True, ordered=True)
    rewritten(folder, lambda t: t[f"{UP}.g_idx"].fill_(9))
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match="g_idx names groups beyond the 9"):
        checkpoint.read(f"{UP}.weight")


def test_biases_that_are_not_zero_are_not_dropped(tmp_path: Path) -> None:
    folder = make_gptq(tmp_path, 4, 32, symmetric=True)
    rewritten(folder, lambda t: t[f"{UP}.bias"].fill_(0.5))
    with pytest.raises(CheckpointError, match=rf"tensor {UP}.bias has no place"):
        open_checkpoint(folder)


def test_a_plan_counts_packed_weights_as_they_are_kept_and_says_so(packed: Path, tmp_path: Path) -> None:
    plan, dense = (plan_for(packed, dtype="bfloat16", weights=weights) for weights in ("auto", "dense"))
    ends = (2 * 307 * 288 + 288) * 2
    kept, expanded = (each.ranks[0].weight_bytes - ends for each in (plan, dense))
    assert kept == pytest.approx(expanded * 4.5 / 16, rel=0.01)
    assert "compressed-tensors, 4 bits for groups of 32" in printed(plan)
    assert plan_from_json(plan_to_json(plan)) == plan
    sixteen = make_compressed(tmp_path / "16", FOUR | {"group_size": 16}, "pack-quantized")
    expanded_plan = plan_for(sixteen, dtype="bfloat16")
    assert "21 of 21 quantised matrices are kept as floats (groups of 16 are no multiple of 32)" in printed(
        expanded_plan
    )
    assert expanded_plan.ranks[0].weight_bytes - ends == expanded


def test_floats_of_eight_bits_are_counted_as_such_on_gpus_alone(tmp_path: Path) -> None:
    folder = make_compressed(tmp_path, {"num_bits": 8, "type": "float", "strategy": "channel"}, "float-quantized")

    def plan(device: str, weights: str = "auto", **options: int) -> Plan:
        topology = parse_topology(device)
        return plan_for(folder, dtype="bfloat16", topology=topology, weights=weights, kv_cache_tokens=None, **options)

    gpu, cpu, dense = plan("H100"), plan("cpu"), plan("H100", "dense")
    ends = (2 * 307 * 288 + 288) * 2
    kept, expanded = (plan.ranks[0].weight_bytes - ends for plan in (gpu, cpu))
    assert kept == pytest.approx(expanded * 8 / 16, rel=0.02)
    assert gpu.prediction.decode_seconds < dense.prediction.decode_seconds
    large = {"max_batch_tokens": 8192}
    reading = [plan("H100", weights, **large).ranks[0].prefill_seconds for weights in ("auto", "dense")]
    assert reading[0] == pytest.approx(reading[1], rel=0.1), "they are computed as floats"
    assert gpu.kv_blocks > dense.kv_blocks
    for made in (gpu, cpu):
        assert "21 of 21 quantised matrices are kept as floats on CPUs (only GPUs have a kernel" in printed(made)
        assert plan_from_json(plan_to_json(made)) == made


def test_floats_of_eight_bits_that_are_no_numbers_are_refused_when_they_are_read(tmp_path: Path) -> None:
    folder = make_compressed(tmp_path, {"num_bits": 8, "type": "float", "strategy": "channel"}, "float-quantized")
    rewritten(folder, lambda t: t[f"{UP}.weight"].view(torch.uint8)[7].fill_(0xFF))
    with open_checkpoint(folder) as checkpoint:
        checkpoint.read(f"{UP}.weight", Span(8, 160))
        with pytest.raises(CheckpointError, match=f"{UP}: some weights are not a number"):
            checkpoint.read(f"{UP}.weight")


def printed(plan: Any) -> str:
    console = Console(file=StringIO(), width=300)
    console.print(plan_table(plan))
    return console.file.getvalue()  # type: ignore[attr-defined]
