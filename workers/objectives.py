"""What a deployment promises the people who use it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Objectives:
    """In seconds; None where nothing is promised. `ttft_s`: the first token after the request at the latest. `tpot_s`:
    the mean time between an output's tokens at most."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __bool__(self) -> bool:
        return self.ttft_s is not None or self.tpot_s is not None

    def met(self, ttft_s: float, tpot_s: float) -> bool:
        """Whether an output with these times kept them."""
        on_time = self.ttft_s is None or ttft_s <= self.ttft_s
        return on_time and (self.tpot_s is None or tpot_s <= self.tpot_s)
