"""Commands of ours as processes, as a terminal or a supervisor has them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "cluster.cli"]
START_S = 120


class Running:
    """A command of ours in a process group of its own, as a terminal starts it."""

    def __init__(self, arguments: Sequence[str], folder: Path, **env: str) -> None:
        self._log = Path(tempfile.mkstemp(dir=folder, suffix=".log")[1])
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**clean, "OMP_NUM_THREADS": "1", **env},
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + START_S
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals) -> int:
        """A terminal's Ctrl-C goes to the whole group; other signals come from a supervisor, to the command alone."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def running(arguments: Sequence[str], folder: Path, **env: str) -> Iterator[Running]:
    """Whatever the test does, nothing of the command outlives it."""
    command = Running(arguments, folder, **env)
    family: list[psutil.Process] = []
    try:
        yield command
    finally:
        if command.process.poll() is None:
            family = command.family()
            command.process.kill()
            command.process.wait()
        for process in family:
            if process.is_running():
                process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gone(family: Sequence[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(family, timeout=15)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
