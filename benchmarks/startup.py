"""Seconds from `phalanx serve` to the first token, with a warm cache: python -m benchmarks.startup MODEL [--tp N]

Each start is a deployment of its own with its own Ray, unless RAY_ADDRESS names a cluster. The first one warms the
caches and is not counted.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic, sleep

import typer

from benchmarks.verdict import Verdict
from phalanx import Client

_ROOT = Path(__file__).resolve().parent.parent
_TARGET_S = 6.0
_START_S, _STOP_S = 120.0, 60.0


def main(model: str, tp: int = 2, repeat: int = 3) -> None:
    times = []
    for number in range(repeat + 1):
        times.append(_first_token(model, tp))
        print(f"{times[-1]:.2f} s{'' if number else ', not counted'}", flush=True)
    print(Verdict(f"phalanx serve {model} --tp {tp} to first token", median(times[1:]), at_most=_TARGET_S, unit="s"))


def _first_token(model: str, tp: int) -> float:
    address = f"127.0.0.1:{free_port()}"
    started = monotonic()
    with _serving([model, "--tp", str(tp), "--listen", address]) as said:
        while f"is ready at {address}" not in said():
            if monotonic() - started > _START_S:
                raise TimeoutError(f"not ready after {_START_S:.0f} s; it said:\n{said()}")
            sleep(0.01)
        with Client(address) as client:
            next(iter(client.stream("The capital of France is", max_tokens=1)))
        return monotonic() - started


@contextmanager
def _serving(arguments: list[str]) -> Iterator[_Said]:
    """Runs `phalanx serve`, and stops it at the end as Ctrl-C does, or by force where that takes too long."""
    with tempfile.NamedTemporaryFile("w+") as log:
        command = [sys.executable, "-m", "cluster.cli", "serve", *arguments]
        process = subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            yield _Said(process, Path(log.name))
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class _Said:
    """What a process has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def __call__(self) -> str:
        """Raises RuntimeError when the process has ended."""
        text = self._log.read_text(encoding="utf-8")
        if self._process.poll() is not None:
            raise RuntimeError(f"phalanx serve ended with exit code {self._process.returncode}; it said:\n{text}")
        return text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    typer.run(main)
