"""The coordinator's end of the ranks' lifelines (see `workers.lifeline`): who died, and who hangs."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from phalanx.v1 import registry_pb2
from workers.progress import Pulse

_CONNECT_S = 10.0
_BLAME_S = 0.3
_SILENT_S = 2.0  # a rank speaks every second


@dataclass(frozen=True)
class Address:
    host: str
    port: int


class RankLifeline:
    """Follows one rank. `pulse` is the last one heard, `heard` when that was.

    `follow` returns when the rank's work has ended, in good order or (`died`) because its process is gone, with the
    reason. `silent_s` tells for how long there has been no word, `still_s` for how long its step has not moved.
    """

    def __init__(self, address: Address, secret: str) -> None:
        self._address, self._secret = address, secret
        self.pulse: Pulse | None = None
        self.heard = monotonic()
        self.died = False
        self.ended: str | None = None

    async def follow(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(self._address.host, self._address.port)
        except (OSError, TimeoutError):
            self.died, self.ended = True, "its process does not answer"
            return
        try:
            writer.write(self._secret.encode() + b"\n")
            with suppress(ConnectionError):
                while line := await reader.readline():
                    word = json.loads(line)
                    if "ended" in word:
                        self.ended = word["ended"]
                        return
                    self.pulse, self.heard = Pulse(**word), monotonic()
            self.died, self.ended = True, "its process died"
        finally:
            writer.close()

    @property
    def silent_s(self) -> float:
        return monotonic() - self.heard

    @property
    def still_s(self) -> float:
        if self.pulse is None or self.pulse.resting:
            return 0.0
        return self.pulse.seconds + self.silent_s

    def __str__(self) -> str:
        if self.ended is not None:
            return self.ended or "it ended"
        if self.pulse is None:
            return "never heard of"
        silent = f"silent since {self.silent_s:.1f} s, before that " if self.silent_s > _SILENT_S else ""
        return f"{silent}{self.pulse}"


class Lifelines:
    """Those of all ranks of an epoch, which are followed from now on. `nodes` are the ranks' nodes, for messages."""

    def __init__(self, addresses: list[Address], secret: str, nodes: list[str]) -> None:
        self._nodes = nodes
        self._ranks = [RankLifeline(address, secret) for address in addresses]
        self.hung = False  # why they were `lost`: no step ended, rather than that a rank has
        self._tasks = [asyncio.create_task(rank.follow()) for rank in self._ranks]

    async def lost(self, deadline_s: float) -> str:
        """Returns, when a rank has ended, has fallen silent or has not moved for `deadline_s`, what each did last."""
        while True:
            done, _ = await asyncio.wait(self._tasks, timeout=deadline_s / 10, return_when=asyncio.FIRST_COMPLETED)
            if done:
                if not any(rank.died for rank in self._ranks):
                    # Ranks that only miss a dead one may be heard before it is.
                    await asyncio.wait(self._tasks, timeout=_BLAME_S)
                return self._blame()
            late = [r for r in self._ranks if r.silent_s > deadline_s or r.still_s > deadline_s]
            if late:
                self.hung = True
                return f"no step ended within {deadline_s:g} s. {self.report()}"

    async def all_ended(self) -> None:
        """Returns when the work of every rank has ended."""
        await asyncio.gather(*self._tasks)

    def vitals(self) -> list[registry_pb2.RankVitals]:
        """How each rank is that has spoken already."""
        return [
            registry_pb2.RankVitals(
                rank=number,
                heard_seconds=rank.silent_s,
                memory_bytes=rank.pulse.memory_bytes,
                memory_total_bytes=rank.pulse.memory_total_bytes,
                doing=rank.pulse.doing,
            )
            for number, rank in enumerate(self._ranks)
            if rank.pulse is not None
        ]

    def report(self) -> str:
        """What each rank did last, and who is under suspicion: who is silent, else who took part in least."""
        suspects = self._suspects()
        lines = [
            f"{self._name(number)}{' (suspect)' if number in suspects else ''}: {rank}"
            for number, rank in enumerate(self._ranks)
        ]
        return "; ".join(lines)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _suspects(self) -> set[int]:
        silent = {number for number, rank in enumerate(self._ranks) if rank.ended is None and rank.silent_s > _SILENT_S}
        if silent:
            return silent
        moving = {n: r.pulse for n, r in enumerate(self._ranks) if r.ended is None and r.pulse and not r.pulse.resting}
        least = min((pulse.collectives for pulse in moving.values()), default=0)
        return {number for number, pulse in moving.items() if pulse.collectives == least}

    def _blame(self) -> str:
        dead = [number for number, rank in enumerate(self._ranks) if rank.died]
        ended = dead or [number for number, rank in enumerate(self._ranks) if rank.ended is not None]
        return "; ".join(f"{self._name(number)}: {self._ranks[number]}" for number in ended)

    def _name(self, number: int) -> str:
        return f"rank {number} on {self._nodes[number]}"
