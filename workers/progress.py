"""What a rank is doing, for another thread to look at: by it, a hung rank is told from a busy one."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True)
class Pulse:
    """A look at a rank: what it does since how many `seconds`, in which step, and how many collectives of its stage it
    has taken part in. A rank that rests waits for work, however long. Of one that stands still, `unfinished` names what
    torch's process groups have begun and not ended. `memory_bytes` are what it uses of its device's
    `memory_total_bytes`."""

    doing: str
    step: int
    seconds: float
    resting: bool
    collectives: int
    unfinished: str = ""
    memory_bytes: int = 0
    memory_total_bytes: int = 0

    def __str__(self) -> str:
        rest = "" if self.resting else f" of step {self.step}, after {self.collectives} collectives"
        waits = f", in {self.unfinished}" if self.unfinished else ""
        return f"{self.doing}{rest}, since {self.seconds:.1f} s{waits}"


class Progress:
    """Written by the thread that steps."""

    def __init__(self) -> None:
        self._now: tuple[str, bool, float] = ("starting", True, monotonic())
        self.step = 0

    def begin(self, doing: str) -> None:
        self._now = (doing, False, monotonic())

    def rest(self, doing: str) -> None:
        self._now = (doing, True, monotonic())

    def pulse(self, collectives: int) -> Pulse:
        doing, resting, since = self._now
        return Pulse(doing, self.step, monotonic() - since, resting, collectives)
