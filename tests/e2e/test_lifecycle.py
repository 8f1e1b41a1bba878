"""Deployments that lose their coordinator, hang, scale, roll and outlive the command that started them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest

from phalanx import AsyncClient, Client
from phalanx.v1 import admin_pb2, registry_pb2, registry_pb2_grpc
from tests.e2e.clusters import further_node, ray_cluster_of, with_our_python
from tests.e2e.processes import COMMAND, ROOT, free_port, gone, running
from workers.security.secret import new_secret, showing

# Asks for the only core of a node, and has it as soon as it is free.
_RIVAL = """
import sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from cluster.topology import ray_nodes
ray.init(log_to_driver=False)
(node,) = [node.node_id for node in ray_nodes() if node.name == sys.argv[1]]
@ray.remote(num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
class Rival:
    def here(self):
        return True
rival = Rival.remote()
print("asked", flush=True)
ray.get(rival.here.remote())
print("here", flush=True)
sys.stdin.read()
"""

_OPTIONS = {"max_tokens": 400, "temperature": 0.8, "seed": 3, "ignore_eos": True}


def _spec(folder: Path, model: Path, **keys: object) -> str:
    fields = {"model": model, "dtype": "float32", "max_model_len": 512, "kv_cache_tokens": 4096, **keys}
    path = folder / f"spec-{free_port()}.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    return str(path)


def _undisturbed(address: str) -> list[int]:
    with Client(address, timeout=60) as client:
        return client.generate("once upon a time", **_OPTIONS).token_ids  # type: ignore[arg-type]


async def _disturbed(address: str, disturb: Callable[[admin_pb2.GetClusterResponse], None]) -> list[int]:
    """The tokens of a stream during which something happens."""
    tokens: list[int] = []
    happened = False
    async with AsyncClient(address, timeout=100) as client:
        async for chunk in client.stream("once upon a time", **_OPTIONS):  # type: ignore[arg-type]
            tokens += chunk.token_ids
            if not happened and len(tokens) > 30:
                happened = True
                disturb(await client.cluster())
    return tokens


def _ranks(address: str) -> dict[int, list[tuple[int, int]]]:
    """(epoch, pid) of every rank of every replica that the gateway is connected to."""
    with Client(address, timeout=20) as client:
        replicas = [entry.replica for entry in client.cluster().replicas if entry.connected]
    return {replica.id: [(replica.epoch, rank.pid) for rank in replica.ranks] for replica in replicas}


def _coordinator(family: list[psutil.Process]) -> psutil.Process:
    (found,) = [process for process in family if "ray::Coordinator" in " ".join(process.cmdline())]
    return found


def _phalanx(*arguments: str, **env: str) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow  # the short storm does that too
def test_serving_goes_on_without_the_coordinator_which_comes_back(model: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with running(["serve", _spec(tmp_path, model, tp=2, listen=address)], tmp_path) as serve:
        serve.wait_for("is ready at")
        undisturbed, before = _undisturbed(address), _ranks(address)
        family = serve.family()
        coordinator = _coordinator(family)
        assert asyncio.run(_disturbed(address, lambda _: coordinator.kill())) == undisturbed
        _until(lambda: any("ray::Coordinator" in " ".join(p.cmdline()) for p in serve.family() if p.is_running()))
        serve.wait_for("goes on after the coordinator was away")
        assert _ranks(address) == before  # the same processes, in the same epoch
        os.kill(before[0][1][1], signal.SIGKILL)  # and it is kept alive as ever
        serve.wait_for("epoch 2: ready after")
        assert _undisturbed(address) == undisturbed
        family += serve.family()
        assert serve.end(signal.SIGTERM) == 0, serve.output
        assert gone(family)


@pytest.mark.slow  # the short storm does that too
def test_a_rank_that_hangs_is_reported_and_replaced(model: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    spec = _spec(tmp_path, model, tp=2, pp=2, listen=address, collective_timeout_s=4)
    with running(["serve", spec], tmp_path) as serve:
        serve.wait_for("is ready at")
        undisturbed = _undisturbed(address)
        stopped: list[int] = []

        def stop(cluster: admin_pb2.GetClusterResponse) -> None:
            stopped.append(cluster.replicas[0].replica.ranks[1].pid)
            os.kill(stopped[0], signal.SIGSTOP)

        started = time.monotonic()
        assert asyncio.run(_disturbed(address, stop)) == undisturbed
        assert time.monotonic() - started < 40
        (report,) = set(re.findall(r"epoch 1: (no step ended within 4 s.*)", serve.output))
        assert re.search(r"rank 1 on \S+ \(suspect\): silent since", report)
        assert re.search(r"rank 0 on \S+: .* of step \d+, after \d+ collectives", report)
        _until(lambda: not psutil.pid_exists(stopped[0]) or psutil.Process(stopped[0]).status() == "zombie")
        family = serve.family()
        assert serve.end(signal.SIGTERM) == 0, serve.output
        assert gone(family)


def test_replicas_come_and_go_while_streams_run(model: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    spec = _spec(tmp_path, model, replicas=2, listen=address, drain_s=0.5)
    with running(["serve", spec], tmp_path) as serve:
        serve.wait_for("is ready at")
        undisturbed = _undisturbed(address)

        async def streams() -> list[list[int]]:
            scale = asyncio.create_task(_scale(address, 1))
            results = await asyncio.gather(*(_disturbed(address, lambda _: None) for _ in range(8)))
            assert await scale == 1
            return results

        assert asyncio.run(streams()) == [undisturbed] * 8
        assert list(_ranks(address)) == [0]
        assert "2 replicas are ready" in _phalanx("scale", "--replicas", "2", "--address", address)
        assert list(_ranks(address)) == [0, 2]  # a number is never used again
        assert serve.end(signal.SIGTERM) == 0, serve.output


async def _rotated(file: Path, spec: str, registry: str, cluster: dict[str, str]) -> None:
    """Gives the deployment another registry secret, in the order in which no gateway is ever refused."""
    old, new = file.read_text().strip(), new_secret()

    async def is_let_in(secret: str) -> bool:
        async with grpc.aio.insecure_channel(registry) as channel:
            request = registry_pb2.WatchRequest(gateway_id="test")
            call = registry_pb2_grpc.RegistryStub(channel).Watch(request, metadata=showing(secret), timeout=10)
            with suppress(grpc.aio.AioRpcError):
                return (await call.read()) is not grpc.aio.EOF
            return await call.code() is not grpc.StatusCode.UNAUTHENTICATED

    assert [await is_let_in(secret) for secret in (old, new)] == [True, False]
    for content, let_in in ((f"{old}\n{new}\n", [True, True]), (f"{new}\n", [False, True])):
        file.write_text(content)
        await asyncio.to_thread(_phalanx, "serve", spec, "--detach", "--registry-secret", str(file), **cluster)
        assert [await is_let_in(secret) for secret in (old, new)] == let_in


async def _scale(address: str, replicas: int) -> int:
    async with AsyncClient(address, timeout=60) as client:
        return await client.scale(replicas)


def test_detached_rolled_and_stopped(model: Path, tmp_path: Path, ray_cluster: dict[str, str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    spec = _spec(tmp_path, model, name="far", replicas=2, drain_s=0.5)
    said = _phalanx("serve", spec, "--detach", **ray_cluster)
    assert "far is ready, and goes on until: phalanx stop far" in said
    registry = re.findall(r"--registry (\S+)", said)[0]
    file = tmp_path / "secret"
    _phalanx("secret", "far", "--file", str(file), **ray_cluster)
    assert file.stat().st_mode & 0o077 == 0
    command = ["gateway", "--registry", registry, "--registry-secret", str(file), "--listen", address]
    with running(command, tmp_path) as gateway:
        gateway.wait_for("listening at")
        _until(lambda: len(_ranks(address)) == 2)
        undisturbed, before = _undisturbed(address), _ranks(address)
        assert "far runs already, from this spec" in _phalanx("serve", spec, "--detach", **ray_cluster)
        assert _ranks(address) == before
        asyncio.run(_rotated(file, spec, registry, ray_cluster))
        assert _ranks(address) == before

        async def streams_and_roll() -> list[list[int]]:
            rolled = _spec(tmp_path, model, name="far", replicas=2, max_running=16)
            roll = asyncio.create_task(asyncio.to_thread(_phalanx, "roll", rolled, **ray_cluster))
            streams: list[list[int]] = []
            while not roll.done():
                streams += await asyncio.gather(*(_disturbed(address, lambda _: None) for _ in range(4)))
            assert "every replica is of the new spec" in await roll
            return streams

        streams = asyncio.run(streams_and_roll())
        assert len(streams) >= 4
        assert all(tokens == undisturbed for tokens in streams)
        after = _ranks(address)
        assert not before.keys() & after.keys()
        assert len(after) == 2
        assert "stopped" in _phalanx("stop", "far", **ray_cluster)
        assert gateway.end(signal.SIGTERM) == 0, gateway.output
    pids = [pid for ranks in (*before.values(), *after.values()) for _, pid in ranks]
    _until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


@pytest.mark.slow
def test_a_replica_whose_place_was_taken_goes_elsewhere(model: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"

    def node() -> str:
        with Client(address, timeout=20) as client:
            (entry,) = client.cluster().replicas
        return entry.replica.ranks[0].node if entry.connected and entry.replica.ranks else ""

    with ray_cluster_of(1, tmp_path) as cluster, further_node(cluster, 1):
        command = ["serve", _spec(tmp_path, model, wait_for_devices="60s"), "--listen", address]
        with running(command, tmp_path, **cluster) as serve:
            serve.wait_for("is ready at")
            before = node()
            rival = subprocess.Popen(
                [sys.executable, "-c", _RIVAL, before],
                cwd=ROOT,
                env={**with_our_python(), **cluster, "PYTHONPATH": f"{ROOT}:{ROOT}/proto"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            with rival:
                assert rival.stdin is not None
                assert rival.stdout is not None
                assert rival.stdout.readline() == "asked\n"
                undisturbed = _undisturbed(address)
                tokens = asyncio.run(
                    _disturbed(address, lambda state: os.kill(state.replicas[0].replica.ranks[0].pid, signal.SIGKILL))
                )
                assert tokens == undisturbed
                assert rival.stdout.readline() == "here\n"
                assert node() not in ("", before)
                rival.stdin.close()
