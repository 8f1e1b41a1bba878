"""Native products against torch's, at sizes that no vector, panel, tile or group divides."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch
from torch import Tensor

from partitioning.compress.recipe import Sparsify
from partitioning.compress.surgeon import least_of
from partitioning.quantised import GROUP, Channels, Codes, Quantised, quantise
from workers.model.weights import Matrix
from workers.native.build import LEVELS, BuildError, build, find_compiler, processor_flags
from workers.native.interface import declare
from workers.native.weights import PackedWeight

ROWS = (1, 2, 3, 4, 5, 12, 13, 16, 29, 33)
SIZES = ((1, 1), (15, 31), (16, 32), (17, 33), (50, 75), (96, 576), (33, 1), (1, 100))
FORMS = ("float32", "bfloat16", "2:4", "half zeros", "int8", "int4", "centred int4", "w8a8")
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "2:4": torch.bfloat16, "half zeros": torch.bfloat16}


@pytest.fixture(scope="module", params=[level.name for level in LEVELS])
def native(request: pytest.FixtureRequest) -> ctypes.CDLL:
    level = next(level for level in LEVELS if level.name == request.param)
    if not level.needs <= processor_flags():
        pytest.skip(f"this processor has no {level.name}")
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHALANX_NATIVE", level.name)
        library = ctypes.CDLL(str(build()))
    declare(library)
    if level.name == "amx" and not library.phx_in_matrix_registers():
        pytest.skip("the kernel refuses AMX's registers to this process")
    return library


def product(native: ctypes.CDLL, parts: list[Matrix], x: Tensor, threads: int, sparse: bool = True) -> Tensor:
    packed = PackedWeight(native, parts, sparse)
    out = torch.empty(len(x), len(parts) * parts[0].shape[0])
    native.phx_product(packed.address, x.contiguous().data_ptr(), len(x), out.data_ptr(), threads, 1)
    return out


def weight(form: str, outputs: int, inputs: int, seed: int = 0) -> Matrix:
    values = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    if form == "int8":
        return quantise(values, 8)
    if form == "w8a8":
        scales = values.abs().amax(dim=1) / 127
        return Channels(((values / scales.unsqueeze(1)).round() + 128).to(torch.uint8), scales)
    if form == "int4":
        return quantise(values, 4)
    if form == "centred int4":
        four = quantise(values, 4)
        return Quantised(4, four.codes, four.scales)
    if form == "2:4":
        whole = torch.nn.functional.pad(values, (0, -inputs % 4))
        values = whole.masked_fill(least_of(whole.abs(), Sparsify(pattern="2:4")), 0.0)[:, :inputs]
    if form == "half zeros":
        values = values.masked_fill(torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) < 0.5, -0.0)
    return values.to(FLOATS[form])


def rounded(x: Tensor, form: str) -> Tensor:
    """Activations as the format has them: float32, bfloat16, or 8 bits with a scale for every 32 or for all."""
    if form == "float32":
        return x
    if form in FLOATS:
        return x.bfloat16().float()
    group = x.shape[1] if form == "w8a8" else GROUP
    groups = -(-x.shape[1] // group)
    padded = torch.nn.functional.pad(x, (0, groups * group - x.shape[1])).view(len(x), groups, group)
    most = padded.abs().amax(dim=2, keepdim=True)
    scales = torch.where(most > 0, most / 127, 1.0)
    return ((padded / scales).round() * scales).view(len(x), -1)[:, : x.shape[1]]


def plain(matrix: Matrix) -> Tensor:
    return matrix.dequantise() if isinstance(matrix, Codes) else matrix.float()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_a_product_is_that_of_the_rounded_rows_and_the_weights(
    native: ctypes.CDLL, form: str, outputs: int, inputs: int
) -> None:
    matrix = weight(form, outputs, inputs)
    for rows in ROWS:
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
        expected = rounded(x, form) @ plain(matrix).T
        # A value half-way between two codes may go either way: one code of one value.
        bound = 2e-6 * inputs if form in FLOATS else x.abs().max() / 127 * plain(matrix).abs().max()
        for threads in (1, 3):
            error = (product(native, [matrix], x, threads) - expected).abs().max()
            assert error <= bound + 1e-5, f"{rows} rows, {threads} threads"


@pytest.mark.parametrize("form", ["2:4", "half zeros"])
@pytest.mark.parametrize(("outputs", "inputs"), [*SIZES, (75, 577)])
def test_zeros_that_are_left_out_change_no_bit(native: ctypes.CDLL, form: str, outputs: int, inputs: int) -> None:
    matrix = weight(form, outputs, inputs)
    for rows in ROWS:
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
        left_out, stored = (product(native, [matrix], x, 2, sparse) for sparse in (True, False))
        assert torch.equal(left_out, stored), f"{rows} rows"


@pytest.mark.parametrize("form", FORMS)
def test_products_of_more_rows_than_a_cache_holds(native: ctypes.CDLL, form: str) -> None:
    matrix = weight(form, 75, 577)
    x = torch.randn(1201, 577, generator=torch.Generator().manual_seed(1))
    expected = rounded(x, form) @ plain(matrix).T
    error = (product(native, [matrix], x, threads=2) - expected).abs().max()
    assert error <= (2e-3 if form in FLOATS else x.abs().max() / 127 * plain(matrix).abs().max())


@pytest.mark.parametrize("form", FORMS)
def test_panels_of_two_matrices_take_turns(native: ctypes.CDLL, form: str) -> None:
    gate, up = weight(form, 40, 64, seed=1), weight(form, 40, 64, seed=2)
    packed = PackedWeight(native, [gate, up])
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
    out = torch.empty(6, 80)
    native.phx_product(packed.address, x.data_ptr(), 6, out.data_ptr(), 2, 1)
    alone = [product(native, [matrix], x, 1) for matrix in (gate, up)]
    for panel in range(4):
        torch.testing.assert_close(
            out[:, panel * 16 : panel * 16 + 16], alone[panel % 2][:, panel // 2 * 16 : panel // 2 * 16 + 16]
        )


@pytest.mark.parametrize("form", ["int8", "int4", "w8a8"])
def test_rows_of_zeros_and_extremes_stay_finite(native: ctypes.CDLL, form: str) -> None:
    x = torch.zeros(7, 70)
    x[1, 3], x[2, 69], x[3] = 1e30, -1e-30, 65504.0
    out = product(native, [weight(form, 20, 70)], x, 2)
    assert out.isfinite().all()
    assert (out[0] == 0).all()


def test_some_level_fits_the_processors_that_this_is_for() -> None:
    if platform.machine() == "x86_64":
        assert any(level.needs <= processor_flags() for level in LEVELS)


def test_zeros_take_no_memory_where_they_are_many_in_every_panel(native: ctypes.CDLL) -> None:
    dense, half = weight("bfloat16", 50, 75), weight("half zeros", 50, 75)
    assert isinstance(half, Tensor)
    assert isinstance(dense, Tensor)
    mixed = half.clone()
    mixed[16:32] = dense[16:32]
    kept = [PackedWeight(native, [matrix]).kept for matrix in (dense, mixed, half, torch.zeros_like(half))]
    assert kept[:2] == [0, 0]
    most = max(int(panel.count_nonzero()) for panel in half.split(16))
    assert kept[2:] == ([most, 1] if native.phx_skips_zeros() else [0, 0])
    assert PackedWeight(native, [half], sparse=False).kept == 0
    assert PackedWeight(native, [half.float()]).kept == 0
    x = torch.randn(3, 75, generator=torch.Generator().manual_seed(2))
    for matrix in (mixed, torch.zeros_like(half)):
        torch.testing.assert_close(product(native, [matrix], x, 1), rounded(x, "bfloat16") @ matrix.float().T)
