"""Which weights torch's semi-structured products take; the products themselves need a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.model.sparse import is_two_of_four, without_zeros


def pruned(rows: int, cols: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    weight = torch.ones(rows, cols // 4, 4, dtype=dtype)
    weight[:, ::2, :2] = 0
    weight[:, 1::2, 1:3] = 0
    return weight.view(rows, cols)


def test_two_zeros_in_every_four_of_a_row_are_the_pattern() -> None:
    assert is_two_of_four(pruned(64, 128))
    assert is_two_of_four(torch.zeros(32, 64, dtype=torch.float16))
    three = pruned(64, 128)
    three[5, 7] = three[5, 5] = 1
    assert not is_two_of_four(three)
    assert not is_two_of_four(pruned(64, 128).T.contiguous())


@pytest.mark.parametrize(("rows", "cols"), [(33, 64), (32, 32), (32, 68), (0, 64)])
def test_other_sizes_stay_dense(rows: int, cols: int) -> None:
    assert not is_two_of_four(torch.zeros(rows, cols, dtype=torch.bfloat16))


def test_float32_stays_dense_and_so_does_everything_on_a_cpu() -> None:
    assert not is_two_of_four(pruned(32, 64, torch.float32))
    weight = pruned(32, 64)
    assert without_zeros(weight) is weight


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_products_on_a_gpu_are_those_of_the_dense_weight() -> None:
    weight = (pruned(64, 128) * torch.randn(64, 128)).to("cuda", torch.bfloat16)
    assert type(without_zeros(weight)) is not Tensor
    for rows in (1, 3, 8, 17):
        x = torch.randn(rows, 128, device="cuda", dtype=torch.bfloat16)
        torch.testing.assert_close(
            torch.nn.functional.linear(x, without_zeros(weight)), x @ weight.T, rtol=0.02, atol=0.02
        )
