from __future__ import annotations

import pytest
import torch

from partitioning.plan import Span
from partitioning.quantised import GROUP, Quantised, quantise

SHAPES = [(1, 1), (1, 32), (3, 33), (5, 31), (7, 576), (2, 100), (0, 64), (4, 0)]
HALF = 2.0**-11  # what rounding to float16 changes at most, as a part of the number


def _weights(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    """Weights as models have them, some groups of which have an outlier."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.05 * torch.randn(rows, cols, generator=generator)
    return torch.where(torch.rand(rows, cols, generator=generator) < 0.01, 10 * weight, weight)


def _by_column(table: torch.Tensor, cols: int) -> torch.Tensor:
    return table.float().repeat_interleave(GROUP, dim=1)[:, :cols]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [8, 4])
def test_every_matrix_has_codes_of_its_own_shape_and_a_scale_for_every_group(shape: tuple[int, int], bits: int) -> None:
    made = quantise(_weights(*shape), bits)
    groups = -(-shape[1] // GROUP)
    assert made.shape == made.dequantise().shape == shape
    assert (made.codes.dtype, made.scales.dtype) == (torch.uint8, torch.float16)
    assert made.scales.shape == (shape[0], groups)
    assert (made.offsets is None) == (bits == 8)
    assert not made.codes.numel() or int(made.codes.max()) < 2**bits


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e3])
def test_eight_bits_are_within_half_a_step(shape: tuple[int, int], magnitude: float) -> None:
    weight = _weights(*shape) * magnitude
    made = quantise(weight, 8)
    step = _by_column(made.scales, shape[1])
    # A scale rounded down leaves the extremes, 127 steps out, a little beyond the last code.
    bound = step * (0.5 + 127 * HALF) + 127 * 2.0**-25
    assert ((made.dequantise() - weight).abs() <= bound).all()


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if min(shape)])
def test_four_bits_have_no_more_squared_error_than_whole_ranges_rounded_to_nearest(shape: tuple[int, int]) -> None:
    weight = _weights(*shape)
    made = quantise(weight, 4).dequantise()
    for start in range(0, shape[1], GROUP):
        group = weight[:, start : start + GROUP]
        low, high = group.amin(dim=1, keepdim=True), group.amax(dim=1, keepdim=True)
        scale, offset = ((high - low) / 15).half().float(), low.half().float()
        codes = torch.where(scale > 0, (group - offset) / scale, 0.0).round().clamp(0, 15)
        plain = (scale * codes + offset - group).square().sum(dim=1)
        error = (made[:, start : start + GROUP] - group).square().sum(dim=1)
        assert (error <= plain * 1.0001 + 1e-9).all()


def test_the_search_for_a_range_pays_in_four_bits() -> None:
    weight = _weights(64, 576)
    grouped = weight.view(64, -1, GROUP)
    low, high = grouped.amin(dim=2, keepdim=True), grouped.amax(dim=2, keepdim=True)
    scale = (high - low) / 15
    plain = (((grouped - low) / scale).round() * scale + low - grouped).square().sum()
    assert (quantise(weight, 4).dequantise() - weight).square().sum() < 0.95 * plain


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros_and_a_constant_group_is_kept_to_float16(bits: int) -> None:
    assert not quantise(torch.zeros(3, 70), bits).dequantise().any()
    constant = torch.full((2, 64), 0.3)
    torch.testing.assert_close(quantise(constant, bits).dequantise(), constant, rtol=2 * HALF, atol=0)


def test_what_fills_up_a_short_last_group_does_not_widen_its_range() -> None:
    weight = 5 + 0.01 * torch.rand(4, 40)
    error = (quantise(weight, 4).dequantise() - weight)[:, 32:].abs().max()
    assert error < 5 * HALF + 0.01 / 15


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_and_columns_of_the_quantised_are_those_of_the_whole(bits: int) -> None:
    made = quantise(_weights(9, 100), bits)
    whole = made.dequantise()
    rows = torch.tensor([8, 0, 0, 3])
    assert torch.equal(made.rows(rows).dequantise(), whole[rows])
    for columns in (Span(32, 64), Span(64, 100), Span(0, 100), Span(32, 32), Span(0, 5)):
        assert torch.equal(made.columns(columns).dequantise(), whole[:, columns.start : columns.stop])
    with pytest.raises(ValueError, match="inside a group"):
        made.columns(Span(5, 10))


def test_codes_without_offsets_are_centred() -> None:
    codes = torch.tensor([[0, 8, 15]], dtype=torch.uint8)
    made = Quantised(4, codes, torch.tensor([[0.5]], dtype=torch.float16))
    assert made.dequantise().tolist() == [[-4.0, 0.0, 3.5]]
