"""8-bit floats of a checkpoint: kept by ranks on GPUs, expanded by those on CPUs; a plan counts them so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from partitioning.checkpoint import open_checkpoint
from partitioning.devices import parse_topology
from partitioning.plan import Plan, RankPlan
from partitioning.quantised import Codes, FloatCodes, Quantised
from tests.replicas import plan_for
from tests.tiny_quantised import make_compressed
from workers.model.weights import EndWeights, LayerWeights, Matrix, WeightReader

OUTPUTS = {"num_bits": 8, "type": "float", "strategy": "channel"}
GROUPS = OUTPUTS | {"strategy": "group", "group_size": 96}
MATRICES = OUTPUTS | {"strategy": "tensor"}


def read(plan: Plan, rank: RankPlan) -> tuple[EndWeights, list[LayerWeights]]:
    with open_checkpoint(Path(plan.model_path)) as checkpoint:
        reader = WeightReader(checkpoint, plan, rank)
        return reader.ends(), list(reader.layers())


def matrices(layer: LayerWeights) -> list[Matrix]:
    return [layer.qkv, layer.out, layer.gate, layer.up, layer.down]


def tensors(*weights: EndWeights | LayerWeights) -> Iterator[Tensor]:
    """All that is kept of them."""
    for each in (value for weight in weights for value in vars(weight).values()):
        if isinstance(each, FloatCodes):
            yield from (each.codes, each.scales)
        elif isinstance(each, Tensor):
            yield each if each.dim() == 2 else each.bfloat16()


@pytest.mark.parametrize("tp", [1, 2, 3])
@pytest.mark.parametrize("weights", [OUTPUTS, GROUPS, MATRICES], ids=["outputs", "groups", "matrices"])
def test_ranks_on_gpus_keep_what_ranks_on_cpus_expand(tmp_path: Path, weights: dict[str, object], tp: int) -> None:
    folder = make_compressed(tmp_path, weights, "float-quantized", intermediate_size=192)
    plan = plan_for(folder, tp=tp, dtype="bfloat16", topology=parse_topology(f"{tp}xH100"))
    for rank in plan.ranks:
        ends, layers = read(plan, rank)
        _, expanded = read(plan, replace(rank, device="cpu:0"))
        for kept, plain in zip(layers, expanded, strict=True):
            for one, other in zip(matrices(kept), matrices(plain), strict=True):
                assert isinstance(one, FloatCodes)
                assert isinstance(other, Tensor)
                assert torch.equal(one.dequantise().bfloat16(), other)
        taken = sum(tensor.nbytes for tensor in tensors(ends, *layers))
        assert rank.weight_bytes == pytest.approx(taken, rel=0.02)


def test_where_a_cut_goes_through_a_group_floats_are_expanded(tmp_path: Path) -> None:
    folder = make_compressed(tmp_path, GROUPS | {"group_size": 32}, "float-quantized", intermediate_size=96)
    plan = plan_for(folder, tp=2, dtype="bfloat16", topology=parse_topology("2xH100"))
    assert len(plan.ranks[0].mlp) % 32
    for rank in plan.ranks:
        _, layers = read(plan, rank)
        assert isinstance(layers[0].down, Tensor)
        assert isinstance(layers[0].up, FloatCodes)


@pytest.mark.parametrize(("device", "kind", "bits"), [("H100", FloatCodes, 8 + 32 / 288), ("cpu", Quantised, 8.5)])
def test_integers_of_eight_bits_take_their_place_where_they_have_no_kernel(
    tmp_path: Path, device: str, kind: type[Codes], bits: float
) -> None:
    folder = make_compressed(tmp_path, OUTPUTS, "float-quantized")
    plan = plan_for(folder, dtype="bfloat16", topology=parse_topology(device), weights="int8")
    (rank,) = plan.ranks
    ends, layers = read(plan, rank)
    assert isinstance(ends.embedding, Quantised)
    assert {type(matrix) for layer in layers for matrix in matrices(layer)} == {kind}
    size = sum(matrix.shape.numel() for layer in layers for matrix in matrices(layer))
    tables = 2 * ends.embedding.shape.numel() * 8.5 / 8
    assert rank.weight_bytes == pytest.approx(size * bits / 8 + tables, rel=5e-3)


def test_codes_of_one_kind_are_stacked_and_picked_by_row() -> None:
    codes = torch.randint(0, 127, (5, 70), dtype=torch.uint8)
    single, grouped = FloatCodes(codes, torch.rand(5, 1)), FloatCodes(codes, torch.rand(5, 3))
    assert not single.like(grouped)
    for weight in (single, grouped):
        assert weight.like(weight)
        which = torch.tensor([4, 0, 4])
        both = weight.stack([weight.rows(which)])
        assert torch.equal(both.dequantise(), torch.cat([weight.dequantise(), weight.dequantise()[which]]))
