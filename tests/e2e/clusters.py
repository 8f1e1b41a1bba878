"""Ray clusters as operators start them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.e2e.processes import free_port


@contextmanager
def ray_cluster_of(cpus: int, folder: Path) -> Iterator[dict[str, str]]:
    """A Ray cluster of so many cores that wants a token, as one that operators run: the environment that reaches it."""
    token = folder / "token"
    token.write_text("phalanx-test-" + "0123456789abcdef" * 4)
    # Ray puts sockets below it, whose paths may not be long.
    temporary = tempfile.mkdtemp(prefix="ray-")
    port, dashboard = free_port(), free_port()
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    options = ["--head", "--block", f"--num-cpus={cpus}", "--disable-usage-stats", "--object-store-memory=80000000"]
    ray = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"),
            "start",
            *options,
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            "--include-dashboard=true",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--temp-dir={temporary}",
        ],
        env={**with_our_python(), **secret},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for_port(dashboard)
        yield {
            **secret,
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "DASHBOARD": f"http://127.0.0.1:{dashboard}",
            "FOLDER": temporary,
        }
    finally:
        family = psutil.Process(ray.pid).children(recursive=True)
        ray.terminate()
        ray.wait(60)
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def further_node(cluster: dict[str, str], cpus: int) -> Iterator[None]:
    """One more node of so many cores in a cluster that `ray_cluster_of` has made, on the same machine."""
    options = [f"--address={cluster['RAY_ADDRESS']}", f"--num-cpus={cpus}", "--object-store-memory=80000000"]
    node = subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *options],
        env={**with_our_python(), **cluster},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        family = psutil.Process(node.pid).children(recursive=True)
        node.terminate()
        node.wait(60)
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the Ray cluster did not start")


def with_our_python() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
