"""2:4 weights on GPUs, which skip their zeros (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021). No GPU
has run this yet. On CPUs the native kernels leave zeros out: workers/native/csrc/sparse.h."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS, _COLS = 32, 64  # of torch's kernels for 16 bits: sizes have to be multiples


def without_zeros(weight: Tensor) -> Tensor:
    """The weight [out, in], as torch's own sparse kind where it is on a device that has products for that."""
    if weight.device.type != "cuda" or not is_two_of_four(weight):
        return weight
    return torch.sparse.to_sparse_semi_structured(weight.contiguous())


def is_two_of_four(weight: Tensor) -> bool:
    """Whether two of every four values of a row are zero, in a size and type that torch's sparse products take."""
    rows, cols = weight.shape
    if weight.dtype not in (torch.bfloat16, torch.float16) or rows % _ROWS or cols % _COLS or weight.numel() == 0:
        return False
    return bool(weight.view(rows, -1, 4).count_nonzero(dim=2).max() <= 2)
