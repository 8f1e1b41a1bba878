"""What goes between host memory and a device. Where the device computes while the process goes on, neither way waits
for the steps that it still has to do: other copies would."""

from __future__ import annotations

import torch
from torch import Tensor


def asynchronous(device: torch.device) -> bool:
    """Whether the device computes while the process goes on."""
    return device.type == "cuda"


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor in host memory, on the device."""
    if not asynchronous(device):
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


class OnItsWay:
    """Tensors that a device may still be computing, on their way to host memory."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tuple(x.to("cpu", non_blocking=True) for x in tensors)
        self._arrived: torch.cuda.Event | None = None
        if (device := tensors[0].device).type == "cuda":
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(device))

    def result(self) -> tuple[Tensor, ...]:
        """Waits for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors
