"""How often a gateway sees the deployment's objectives kept."""

from __future__ import annotations

from collections.abc import Callable

from phalanx.v1 import admin_pb2
from workers.objectives import Objectives


class Kept:
    """Counts outputs as their clients got them; those that waited for their readers are left out. `note` is told of
    each output whether it kept "ttft" and "tpot", where that was promised."""

    def __init__(self, note: Callable[[str, bool], None] = lambda objective, kept: None) -> None:
        self._note = note
        self.objectives = Objectives()
        self._finished = self._kept = self._shed = 0

    def finished(self, ttft_s: float, duration_s: float, tokens: int) -> None:
        """An output has come to its end."""
        tpot_s = (duration_s - ttft_s) / (tokens - 1) if tokens > 1 else 0.0
        self._finished += 1
        self._kept += self.objectives.met(ttft_s, tpot_s)
        if self.objectives.ttft_s is not None:
            self._note("ttft", ttft_s <= self.objectives.ttft_s)
        if self.objectives.tpot_s is not None:
            self._note("tpot", tpot_s <= self.objectives.tpot_s)

    def shed(self) -> None:
        """A request was refused, as it would have come too late."""
        self._shed += 1

    def report(self) -> admin_pb2.ObjectivesReport | None:
        """None where nothing is promised."""
        if not self.objectives:
            return None
        return admin_pb2.ObjectivesReport(
            ttft_seconds=self.objectives.ttft_s or 0.0,
            tpot_seconds=self.objectives.tpot_s or 0.0,
            finished=self._finished,
            kept=self._kept,
            shed=self._shed,
        )
