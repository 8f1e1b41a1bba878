"""Triton's kernels against torch, on awkward sizes: on a GPU, or interpreted where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")

from partitioning.quantised import Channels, FloatCodes, Quantised, quantise
from workers.gpu import expansion
from workers.gpu.attention import paged_attention
from workers.gpu.expansion import ExpandedLinear
from workers.gpu.float_products import FloatLinear
from workers.gpu.products import ChannelLinear, GroupLinear
from workers.gpu.rows import add_norm, gated, norm
from workers.gpu.tiles import Tiling
from workers.model.attention import KVCache
from workers.model.batch import Sequences
from workers.model.kept_rows import FloatRows, Int8Rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(2)


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (3, 72), (2, 2049)])
def test_norms(rows: int, columns: int) -> None:
    x, delta, weight = _normal(rows, columns), _normal(rows, columns), _normal(columns)
    torch.testing.assert_close(norm(x, weight, 1e-5), F.rms_norm(x, (columns,), weight, 1e-5))
    total, normed = add_norm(x, delta, weight, 1e-5)
    torch.testing.assert_close(total, x + delta)
    torch.testing.assert_close(normed, F.rms_norm(x + delta, (columns,), weight, 1e-5))
    assert norm(x[:0], weight, 1e-5).shape == (0, columns)


@pytest.mark.parametrize("columns", [1, 88, 1025])
def test_the_gate(columns: int) -> None:
    x = _normal(3, 2 * columns) * 10
    torch.testing.assert_close(gated(x), F.silu(x[:, :columns]) * x[:, columns:])


# Widths that no group, and outputs that no tile divides; rows below and above where weights are expanded as a whole.
@pytest.mark.parametrize("rows", [0, 1, 5, 17, 65])
@pytest.mark.parametrize(("outputs", "inputs"), [(33, 72), (64, 256), (1, 31)])
@pytest.mark.parametrize("kind", ["8 bits", "8 bits, offsets", "4 bits", "4 bits, centred"])
def test_products_with_groups(kind: str, outputs: int, inputs: int, rows: int) -> None:
    weight = quantise(_normal(outputs, inputs), int(kind[0]))
    if kind == "8 bits, offsets":
        weight = Quantised(8, weight.codes, weight.scales, torch.randn_like(weight.scales))
    elif kind == "4 bits, centred":
        weight = Quantised(4, weight.codes, weight.scales)
    bias = _normal(outputs) if outputs > 1 else None
    x = _normal(rows, inputs)
    linear = GroupLinear(weight.to(DEVICE), bias)
    expected = weight.dequantise().to(DEVICE)
    torch.testing.assert_close(linear.expanded(torch.float32, 0, outputs), expected)
    torch.testing.assert_close(linear(x), F.linear(x, expected, bias), rtol=1e-4, atol=1e-4)


def _floats(outputs: int, inputs: int, scales: int) -> FloatCodes:
    """All codes but the two that are no number."""
    codes = torch.randint(0, 254, (outputs, inputs), dtype=torch.uint8)
    codes += codes > 126
    return FloatCodes(codes, torch.rand(outputs, scales) / 448)


@pytest.mark.parametrize("rows", [0, 1, 5, 17, 65])
@pytest.mark.parametrize(("outputs", "inputs"), [(33, 72), (64, 512), (1, 31), (7, 300)])
@pytest.mark.parametrize("grouped", [False, True])
def test_products_with_floats_of_eight_bits(grouped: bool, outputs: int, inputs: int, rows: int) -> None:
    weight = _floats(outputs, inputs, -(-inputs // 32) if grouped else 1)
    bias = _normal(outputs) if outputs > 1 else None
    x = _normal(rows, inputs)
    linear = FloatLinear(weight.to(DEVICE), bias)
    expected = weight.dequantise().to(DEVICE)
    torch.testing.assert_close(linear(x), F.linear(x, expected, bias), rtol=1e-4, atol=1e-4)


def test_every_float_of_eight_bits_is_rounded_as_torch_rounds_it() -> None:
    """When it is expanded, and in a product of few rows that pick some. The interpreter cuts bfloat16 off."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[codes & 127 != 127].repeat(3, 1)
    weight = FloatCodes(codes, torch.tensor([[1.0], [0.0123], [2.0**-9]]))
    linear, expected = FloatLinear(weight.to(DEVICE), None), weight.dequantise()
    for dtype in (torch.float32, torch.float16):
        assert torch.equal(linear.expanded(dtype, 0, 3).cpu(), expected.to(dtype))
    picks = torch.eye(254, dtype=torch.float16)[3::17].contiguous()
    assert torch.equal(linear(picks.to(DEVICE)).cpu(), expected.half()[:, 3::17].t())


@pytest.mark.parametrize("kind", [GroupLinear, FloatLinear])
def test_many_rows_expand_a_part_of_the_outputs_at_a_time(
    monkeypatch: pytest.MonkeyPatch, kind: type[ExpandedLinear]
) -> None:
    monkeypatch.setattr(expansion, "_EXPANDED_BYTES", 4 * 40 * 33)
    weight = quantise(_normal(70, 40), 4) if kind is GroupLinear else _floats(70, 40, 2)
    bias, x = _normal(70), _normal(50, 40)
    expected = F.linear(x, weight.dequantise().to(DEVICE), bias)
    torch.testing.assert_close(kind(weight.to(DEVICE), bias)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(("outputs", "inputs"), [(33, 72), (64, 256), (5, 3)])
def test_products_of_integers(outputs: int, inputs: int, rows: int) -> None:
    codes = torch.randint(1, 256, (outputs, inputs), dtype=torch.uint8)
    weight = Channels(codes, torch.rand(outputs) + 0.5).to(DEVICE)
    x, bias = _normal(rows, inputs), _normal(outputs)
    x[0] = 0  # has a scale, too
    scale = x.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    expected = F.linear((x / scale).round() * scale, weight.dequantise(), bias)
    torch.testing.assert_close(ChannelLinear(weight, bias)(x), expected, rtol=1e-4, atol=1e-3)


def _seen(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """q [n, heads, dim] of the last n positions; k, v [context, heads, dim]."""
    behind = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
    allowed = (behind >= 0) & ((behind < window) if window else True)
    parts = (x.transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(*parts, attn_mask=allowed.to(DEVICE)).transpose(0, 1)


@pytest.mark.parametrize("splits", [1, 64])
@pytest.mark.parametrize("window", [0, 7, 100])
@pytest.mark.parametrize("int8", [False, True])
def test_attention(int8: bool, window: int, splits: int) -> None:
    """Four sequences whose blocks lie about, with contexts around the multiples of a tile; KV heads of 3, 1 and 2
    readers."""
    readers, dim, size, max_blocks = [3, 1, 2], 24, 8, 100
    contexts, counts = [1, 64, 65, 300], [1, 1, 5, 50]
    kind = Int8Rows if int8 else FloatRows
    cache = KVCache(*(kind(4 * max_blocks, size, len(readers), dim, torch.float32, DEVICE) for _ in range(2)))
    tables = torch.randperm(4 * max_blocks, device=DEVICE).view(4, max_blocks)
    kept = []
    for sequence, context in enumerate(contexts):
        at = torch.arange(context, device=DEVICE)
        slots = tables[sequence, at // size] * size + at % size
        kept.append(cache.write(slots, _normal(context, 3, dim), _normal(context, 3, dim)))
    q = _normal(sum(counts), sum(readers), dim)
    firsts = torch.tensor(counts).cumsum(0) - torch.tensor(counts)
    expected = []
    for slot, (first, count) in enumerate(zip(firsts.tolist(), counts, strict=True)):
        k, v = (x.repeat_interleave(torch.tensor(readers, device=DEVICE), dim=1) for x in kept[slot])
        expected.append(_seen(q[first : first + count], k, v, window))
    tiling = Tiling(readers, 4 * 32, DEVICE)
    starts = torch.tensor(contexts) - torch.tensor(counts)
    plan = tiling.plan(Sequences(tables, torch.arange(4), starts, firsts, torch.tensor(counts)))
    assert (len(plan.few.entries), len(plan.many.entries)) == (3, 2)
    found = paged_attention(q, cache, plan, tiling, window, programs=9 * splits)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
