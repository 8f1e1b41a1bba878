"""The one place that picks what a device computes with."""

from __future__ import annotations

import logging

import torch

from partitioning.plan import Plan, RankPlan
from workers.gpu.ready import REMEDY, missing
from workers.model.kernels import Kernels
from workers.model.torch_kernels import TorchKernels
from workers.native.build import switched_off

_log = logging.getLogger(__name__)


def kernels_for(plan: Plan, rank: RankPlan, device: torch.device) -> Kernels:
    """Triton's on a GPU, unless PHALANX_NATIVE=off; torch's elsewhere."""
    if device.type != "cuda" or switched_off():
        return TorchKernels(plan, rank, device)
    if (why := missing()) is not None:
        _log.warning("no kernels for this GPU, it runs on torch's own, slower: %s (%s)", why, REMEDY)
        return TorchKernels(plan, rank, device)
    from workers.gpu.kernels import TritonKernels

    return TritonKernels(plan, rank, device)
