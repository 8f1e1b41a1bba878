"""Where kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from workers.model.attention import KVCache


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the thread's current device, which need not be the one that holds the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def tensors_of(cache: KVCache) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values, and the scales of both: of a cache without, something that kernels do not look at."""
    keys, values = cache.keys, cache.values
    key_scales, value_scales = (rows.kept if rows.scales is None else rows.scales for rows in (keys, values))
    return keys.kept, values.kept, key_scales, value_scales


def programs_of(device: torch.device) -> int:
    """How many programs of a kernel keep the device busy: two for each multiprocessor."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 16
