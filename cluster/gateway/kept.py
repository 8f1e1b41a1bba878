"""How quick a gateway sees answers be, and how often the deployment's objectives kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

from phalanx.v1 import admin_pb2
from workers.objectives import Objectives

_RECENT = 1024  # outputs
_RECENT_S = 300.0


class Kept:
    """Counts outputs as their clients got them; those that waited for their readers are left out. `note` is told of
    each output whether it kept "ttft" and "tpot", where that was promised."""

    def __init__(self, note: Callable[[str, bool], None] = lambda objective, kept: None) -> None:
        self._note = note
        self.objectives = Objectives()
        self._finished = self._kept = self._shed = 0
        self._recent: deque[tuple[float, float, float | None]] = deque(maxlen=_RECENT)  # end, TTFT and TPOT

    def finished(self, ttft_s: float, duration_s: float, tokens: int) -> float | None:
        """An output has come to its end. Returns the mean time between its tokens, None where it is a single one."""
        tpot_s = (duration_s - ttft_s) / (tokens - 1) if tokens > 1 else None
        self._recent.append((monotonic(), ttft_s, tpot_s))
        self._finished += 1
        self._kept += self.objectives.met(ttft_s, tpot_s or 0.0)
        if self.objectives.ttft_s is not None:
            self._note("ttft", ttft_s <= self.objectives.ttft_s)
        if self.objectives.tpot_s is not None:
            self._note("tpot", (tpot_s or 0.0) <= self.objectives.tpot_s)
        return tpot_s

    def shed(self) -> None:
        """A request was refused, as it would have come too late."""
        self._shed += 1

    def recent(self) -> admin_pb2.LatencyReport | None:
        """Of the last outputs; None when there were none lately."""
        since = monotonic() - _RECENT_S
        ttfts = [ttft_s for end, ttft_s, _ in self._recent if end >= since]
        tpots = [tpot_s for end, _, tpot_s in self._recent if end >= since and tpot_s is not None]
        if not ttfts:
            return None
        return admin_pb2.LatencyReport(
            outputs=len(ttfts),
            ttft_p50_seconds=_percentile(ttfts, 50),
            ttft_p95_seconds=_percentile(ttfts, 95),
            tpot_p50_seconds=_percentile(tpots, 50),
            tpot_p95_seconds=_percentile(tpots, 95),
        )

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


def _percentile(values: Sequence[float], percent: int) -> float:
    """The least of `values` that so many percent do not exceed; 0 when there are none."""
    return sorted(values)[-(-len(values) * percent // 100) - 1] if values else 0.0
