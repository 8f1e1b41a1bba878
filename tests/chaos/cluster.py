"""A Ray cluster over machines that are network namespaces, a detached deployment on it, and gateways."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.chaos.network import Machine, memory_of
from workers.security.secret import new_secret

ROOT = Path(__file__).resolve().parents[2]
_BIN = Path(sys.executable).parent
_GATEWAY_PORT, _REGISTRY_PORT, _RAY_PORT = 50051, 50052, 6390
_START_S = 180.0


class Cluster:
    """`head` runs Ray's head and no ranks, `nodes` run ranks, `fronts` gateways. Everything ends with `stop`."""

    def __init__(self, head: Machine, nodes: Sequence[Machine], fronts: Sequence[Machine], folder: Path) -> None:
        self.head, self.nodes, self.fronts = head, list(nodes), list(fronts)
        self._folder = folder
        self._temporary = tempfile.mkdtemp(prefix="rc-")  # Ray puts sockets below it, whose paths may not be long
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._secret = new_secret()

    @property
    def addresses(self) -> str:
        """Of all gateways."""
        return ",".join(f"{machine.address}:{_GATEWAY_PORT}" for machine in self.fronts)

    def start(self, spec: str) -> None:
        """Starts Ray on every machine, the deployment in the file `spec`, and the gateways."""
        self._ray(self.head, "--head", f"--port={_RAY_PORT}", "--num-cpus=0", f"--temp-dir={self._temporary}")
        deadline = time.monotonic() + _START_S
        while self._on_head("-c", "import ray; ray.init(address='auto', logging_level=50)").returncode:
            assert time.monotonic() < deadline, self.log(self.head.name)
        for node in self.nodes:
            self.start_node(node)
        done = self.phalanx("serve", spec, "--detach")
        assert done.returncode == 0, done.stderr + "".join(self.log(node.name)[-2000:] for node in self.nodes)
        for front in self.fronts:
            self.start_gateway(front)

    def start_node(self, node: Machine) -> None:
        self._ray(node, f"--address={self.head.address}:{_RAY_PORT}", "--num-cpus=2")

    def start_gateway(self, front: Machine) -> None:
        # Wherever Ray puts the coordinator.
        registry = ",".join(f"{machine.address}:{_REGISTRY_PORT}" for machine in (self.head, *self.nodes))
        listen = f"{front.address}:{_GATEWAY_PORT}"
        arguments = ["gateway", "--registry", registry, "--listen", listen, "--insecure"]
        self._spawn(front, [sys.executable, "-m", "cluster.cli", *arguments])

    def phalanx(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command on the head."""
        return self._on_head("-m", "cluster.cli", *arguments)

    def runs(self, machine: Machine) -> bool:
        """Whether it has been started, and not been killed since."""
        return machine.name in self._processes

    def kill_gateway(self, front: Machine) -> None:
        self._kill(front)

    def kill_node(self, node: Machine) -> bool:
        """Kills the raylet, and leaves the rest of the machine to find out. False when it had none."""
        killed = False
        for process in self._family(node):
            with suppress(psutil.NoSuchProcess):
                if process.name() == "raylet":
                    process.kill()
                    killed = True
        return killed

    def bury_node(self, node: Machine) -> None:
        """Ends what is left of a machine whose raylet was killed."""
        self._kill(node)

    def kill_coordinator(self) -> bool:
        """False when none is running now."""
        for machine in (self.head, *self.nodes):
            for process in self._family(machine):
                with suppress(psutil.NoSuchProcess):
                    if process.cmdline()[:1] == ["ray::Coordinator"]:
                        process.kill()
                        return True
        return False

    def memory(self, node: Machine) -> Path:
        """The node's /dev/shm."""
        return memory_of(self._processes[node.name].pid)

    def ranks(self) -> list[int]:
        """The pids of all rank actors there are."""
        found = []
        for machine in (self.head, *self.nodes):
            for process in self._family(machine):
                with suppress(psutil.NoSuchProcess):
                    if "RankActor" in " ".join(process.cmdline()):
                        found.append(process.pid)
        return found

    def left_in_ray(self) -> str:
        """Named actors and living placement groups, as text; empty when there are none."""
        code = (
            "import ray; ray.init(address='auto', logging_level=50)\n"
            "actors = ray.util.list_named_actors(all_namespaces=True)\n"
            "groups = [g['name'] for g in ray.util.placement_group_table().values() if g['state'] != 'REMOVED']\n"
            "print(*actors, *groups)"
        )
        return self._on_head("-c", code).stdout.strip()

    def log(self, name: str) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob(f"{name}-*.log")))

    def stop(self) -> None:
        family = [process for machine in self._machines() for process in self._family(machine)]
        for machine in reversed(self._machines()):
            self._kill(machine)
        for process in psutil.wait_procs(family, timeout=5)[1]:
            process.kill()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _machines(self) -> list[Machine]:
        return [machine for machine in (self.head, *self.nodes, *self.fronts) if machine.name in self._processes]

    def _ray(self, machine: Machine, *options: str) -> None:
        common = ["--block", f"--node-ip-address={machine.address}", "--object-store-memory=80000000"]
        dashboard = ["--include-dashboard=false"] if "--head" in options else []
        self._spawn(machine, [str(_BIN / "ray"), "start", *options, *common, *dashboard])

    def _spawn(self, machine: Machine, command: list[str]) -> None:
        number = len(list(self._folder.glob(f"{machine.name}-*.log")))
        with (self._folder / f"{machine.name}-{number}.log").open("w") as log:
            own = "" if machine is self.head else self._temporary
            self._processes[machine.name] = subprocess.Popen(
                machine.command(command, own),
                cwd=ROOT,
                env=self._environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _on_head(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self.head.inside, sys.executable, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self._environment(), capture_output=True, text=True, timeout=_START_S, check=False
        )

    def _environment(self) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return {
            **clean,
            "PATH": f"{_BIN}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": f"{self.head.address}:{_RAY_PORT}",
            "PHALANX_REGISTRY_SECRET": self._secret,
        }

    def _family(self, machine: Machine) -> list[psutil.Process]:
        process = self._processes.get(machine.name)
        try:
            return psutil.Process(process.pid).children(recursive=True) if process else []
        except psutil.NoSuchProcess:
            return []

    def _kill(self, machine: Machine) -> None:
        family = self._family(machine)
        process = self._processes.pop(machine.name)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
        process.wait()


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
