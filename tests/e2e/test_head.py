"""The loss of Ray's head, with a store that outlives it, as operators set it up (docs/deployment.md)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from phalanx import AsyncClient, Client, PhalanxError
from tests.e2e.clusters import with_our_python
from tests.e2e.processes import COMMAND, ROOT, free_port, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Store = tuple[dict[str, str], list[str]]

_HOST = "127.0.0.1"
_OPTIONS = {"max_tokens": 400, "temperature": 0.8, "seed": 3, "ignore_eos": True}


class DurableCluster:
    """A Ray cluster of a head, whose state is in `store` (variables of Ray's, options of `ray start`), and a node with
    two cores."""

    def __init__(self, folder: Path, store: Store) -> None:
        # Ray puts sockets below it, whose paths may not be long.
        self._temporary = tempfile.mkdtemp(prefix="rh-")
        self._port, self._folder, self._store = free_port(), folder, store
        self.environment = {"RAY_ADDRESS": f"{_HOST}:{self._port}", "RAY_AUTH_MODE": "disabled"}
        self._node: subprocess.Popen[bytes] | None = None
        self.start_head()
        _until(
            lambda: self._phalanx("-c", "import ray; ray.init(address='auto', logging_level=50)").returncode == 0, 60
        )
        self._node = self._ray(f"--address={_HOST}:{self._port}", "--num-cpus=2")

    def start_head(self) -> None:
        env, options = self._store
        self._head = self._ray(
            "--head",
            f"--port={self._port}",
            "--num-cpus=0",
            "--include-dashboard=false",
            f"--temp-dir={self._temporary}",
            *options,
            **env,
        )

    def kill_head(self) -> None:
        """At once, and everything that ran on it, as the loss of its machine does."""
        _kill(self._head)
        # Where it is, Ray takes the node's processes for those of a head that runs.
        (Path(self._temporary) / "ray_current_cluster").unlink()

    def phalanx(self, *arguments: str) -> str:
        done = self._phalanx(*COMMAND[1:], *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def stop(self) -> None:
        for process in (self._node, self._head):
            if process is not None:
                _kill(process)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _phalanx(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        env = {**with_our_python(), **self.environment}
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    def _ray(self, *options: str, **env: str) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *options]
        log = (self._folder / f"ray-{time.monotonic_ns()}.log").open("w")
        return subprocess.Popen(
            [*command, "--object-store-memory=80000000"],
            env={**with_our_python(), **self.environment, **env},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _kill(ray: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(ray.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    ray.kill()
    ray.wait()


def _until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def _files(folder: Path) -> Iterator[Store]:
    yield {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}, []


@contextmanager
def _redis(folder: Path) -> Iterator[Store]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server here (Debian's package of that name)")
    port, password = free_port(), "of-a-test"
    options = ["--port", str(port), "--bind", _HOST, "--requirepass", password, "--save", "", "--dir", str(folder)]
    redis = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        yield {"RAY_REDIS_ADDRESS": f"{_HOST}:{port}"}, [f"--redis-password={password}"]
    finally:
        redis.terminate()
        redis.wait(10)


@pytest.fixture(params=[_files, _redis])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with request.param(tmp_path) as made:
        yield made


@pytest.fixture
def cluster(tmp_path: Path, store: Store) -> Iterator[DurableCluster]:
    made = DurableCluster(tmp_path, store)
    try:
        yield made
    finally:
        made.stop()


def _ranks(address: str) -> list[tuple[int, int]]:
    """(epoch, pid) of every rank that the gateway is connected to."""
    with Client(address, timeout=20) as client, suppress(PhalanxError):
        replicas = [entry.replica for entry in client.cluster().replicas if entry.connected]
        return [(replica.epoch, rank.pid) for replica in replicas for rank in replica.ranks]
    return []


async def _stream(address: str, disturb: Callable[[], None]) -> list[int]:
    tokens: list[int] = []
    async with AsyncClient(address, timeout=200) as client:
        async for chunk in client.stream("once upon a time", **_OPTIONS):  # type: ignore[arg-type]
            tokens += chunk.token_ids
            if len(tokens) > 30 and disturb is not _nothing:
                disturb()
                disturb = _nothing
    return tokens


def _nothing() -> None:
    pass


def test_streams_and_replicas_outlive_the_head_and_are_managed_again_when_it_is_back(
    model: Path, tmp_path: Path, cluster: DurableCluster
) -> None:
    address = f"{_HOST}:{free_port()}"
    spec = tmp_path / "spec.yaml"
    fields = {"model": str(model), "tp": 2, "dtype": "float32", "max_model_len": 512, "kv_cache_tokens": 4096}
    # Wherever the coordinator is started again.
    spec.write_text(json.dumps({**fields, "registry_listen": f":{free_port()}", "wait_for_devices": "60s"}))
    said = cluster.phalanx("serve", str(spec), "--detach")
    (registry,) = re.findall(r"--registry (\S+)", said)
    secret = cluster.phalanx("secret").split()[0]
    gateway = ["gateway", "--registry", registry, "--listen", address]
    with running(gateway, tmp_path, PHALANX_REGISTRY_SECRET=secret) as serving:
        serving.wait_for("listening at")
        _until(lambda: len(_ranks(address)) == 2, 60)
        undisturbed, before = asyncio.run(_stream(address, _nothing)), _ranks(address)
        assert asyncio.run(_stream(address, cluster.kill_head)) == undisturbed
        assert asyncio.run(_stream(address, _nothing)) == undisturbed  # and what comes while it is away
        cluster.start_head()
        time.sleep(5)
        assert _ranks(address) == before  # the same processes, in the same epoch
        os.kill(before[1][1], signal.SIGKILL)  # which are kept alive again
        _until(lambda: [epoch for epoch, _ in _ranks(address)] == [before[0][0] + 1] * 2, 120)
        assert asyncio.run(_stream(address, _nothing)) == undisturbed
        assert "stopped" in cluster.phalanx("stop", "phalanx")
        assert serving.end(signal.SIGTERM) == 0, serving.output
