"""A target beside what was measured, and whether it was met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """`measured` has to be `at_least` or `at_most` what is given, of which one is. `unit` follows the figures: "×"."""

    work: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "×"

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.work}: a target is either at_least or at_most")

    @property
    def met(self) -> bool:
        if self.at_least is not None:
            return self.measured >= self.at_least
        assert self.at_most is not None
        return self.measured <= self.at_most

    @property
    def target(self) -> str:
        sign, bound = ("≥", self.at_least) if self.at_least is not None else ("≤", self.at_most)
        assert bound is not None
        return f"{sign} {self._figure(bound)}"

    def _figure(self, value: float) -> str:
        return f"{value:.1%}" if self.unit == "%" else f"{value:.2f} {self.unit}"

    def __str__(self) -> str:
        return f"{self.work}: {self._figure(self.measured)}, target {self.target}: {'met' if self.met else 'NOT met'}"

    def row(self) -> str:
        """A line of the table."""
        return f"| {self.work} | {self.target} | {self._figure(self.measured)} | {'yes' if self.met else '**no**'} |"


def table(verdicts: Sequence[Verdict]) -> str:
    return "\n".join(["| work | target | measured | met |", "|---|---|---|---|", *(one.row() for one in verdicts)])
