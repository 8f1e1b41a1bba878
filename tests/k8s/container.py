"""One container of a rendered pod, as the kubelet's part of these tests starts it, asks it and ends it."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.network import Machine


@dataclass(frozen=True)
class Place:
    """What a pod gives each of its containers: `volumes` as folders here, or a size for one in memory; `hosts` is its
    /etc/hosts, `folder` its own one, for logs."""

    user: int
    volumes: Mapping[str, Path | str]
    machine: Machine
    hosts: Path
    folder: Path


class Container(ABC):
    """A process here stands for it: its output is the container's, and it ends with it."""

    def __init__(self, spec: dict[str, Any], environment: Mapping[str, str], place: Place) -> None:
        self.name: str = spec["name"]
        self._spec, self._environment, self._place = spec, environment, place
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def output(self) -> str:
        logs = sorted(self._place.folder.glob(f"{self.name}-*.log"))
        return "\n".join(path.read_text(errors="replace") for path in logs)

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def start(self) -> None:
        command = self._starting()
        with (self._place.folder / f"{self.name}-{self.starts}.log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.starts += 1

    def wait(self, seconds: float) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    @abstractmethod
    def run(self, command: Sequence[str], seconds: float) -> bool:
        """Whether a command inside succeeds in time."""

    @abstractmethod
    def terminate(self) -> None:
        """What a kubelet sends first."""

    @abstractmethod
    def kill(self) -> None:
        """Ends everything in it at once."""

    @abstractmethod
    def _starting(self) -> list[str]:
        """The command that starts it, and lasts as long as it does."""

    @property
    def _command(self) -> list[str]:
        return [*self._spec["command"], *self._spec.get("args", [])]


Image = Callable[[dict[str, Any], Mapping[str, str], Place], Container]
