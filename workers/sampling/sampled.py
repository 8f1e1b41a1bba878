"""What a step has drawn: known, or on its way from a device that may still be drawing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.transfer import OnItsWay


@dataclass(frozen=True)
class Sampled:
    """tokens [samples]. logprobs [rows that ask for them, 1 + 2 * n] float32: the token's own, then the n best
    logprobs, then their ids, n being the most that any row asks for; no rows when none does. On the CPU."""

    tokens: list[int]
    logprobs: Tensor

    def result(self) -> Sampled:
        return self


NO_LOGPROBS = torch.empty(0, 1)
NOTHING_SAMPLED = Sampled([], NO_LOGPROBS)


class Drawn:
    """tokens int64 [samples] and logprobs as in `Sampled`, on a device."""

    def __init__(self, tokens: Tensor, logprobs: Tensor | None = None) -> None:
        self._brought = OnItsWay(tokens) if logprobs is None else OnItsWay(tokens, logprobs)

    def result(self) -> Sampled:
        """Waits for the device."""
        tokens, *logprobs = self._brought.result()
        return Sampled(tokens.tolist(), *(logprobs or [NO_LOGPROBS]))
