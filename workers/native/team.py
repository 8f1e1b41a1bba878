"""The threads that a stage and the draws from its logits compute with: see csrc/team.h."""

from __future__ import annotations

import ctypes

from workers.native.interface import declare


class Team:
    """`patient` threads have a core of their own and may spin for a while before they sleep. One job runs at a time."""

    def __init__(self, native: ctypes.CDLL, threads: int, patient: bool) -> None:
        declare(native)
        self._native = native
        self.address: int = native.phx_team_new(threads, patient)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._native.phx_team_free(self.address)
