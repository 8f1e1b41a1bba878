"""Where kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the thread's current device, which need not be the one that holds the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def programs_of(device: torch.device) -> int:
    """How many programs of a kernel keep the device busy: two for each multiprocessor."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 16
