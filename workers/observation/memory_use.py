"""How much memory a rank uses, for another thread to look at while it steps."""

from __future__ import annotations

import psutil
import torch


def memory_use(device: torch.device) -> tuple[int, int]:
    """Bytes used and bytes there are: of a GPU's memory what torch holds, of a host's what this process has resident.

    Asks torch's own books and not the driver, which a graph that is being captured would not bear.
    """
    if device.type != "cuda":
        return psutil.Process().memory_info().rss, psutil.virtual_memory().total
    return torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
