"""A deployment of its own for a benchmark."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

_ROOT = Path(__file__).resolve().parent.parent
_START_S, _STOP_S = 120.0, 60.0


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[str]:
    """Runs `phalanx serve ARGUMENTS` until it is ready, and gives its address; stops it at the end as Ctrl-C does, or
    by force where that takes too long.

    Raises:
        RuntimeError: it ended.
        TimeoutError: it was not ready in time.
    """
    address = f"127.0.0.1:{free_port()}"
    with tempfile.NamedTemporaryFile("w+") as log:
        command = [sys.executable, "-m", "cluster.cli", "serve", *arguments, "--listen", address]
        process = subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_ready(process, Path(log.name), address)
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, address: str) -> None:
    started = monotonic()
    while f"is ready at {address}" not in (text := log.read_text(encoding="utf-8")):
        if process.poll() is not None:
            raise RuntimeError(f"phalanx serve ended with exit code {process.returncode}; it said:\n{text}")
        if monotonic() - started > _START_S:
            raise TimeoutError(f"not ready after {_START_S:.0f} s; it said:\n{text}")
        sleep(0.01)
