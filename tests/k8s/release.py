"""A rendered release on machines that are network namespaces: KubeRay's part, names as the cluster's DNS has them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.network import Machine
from tests.k8s.container import Image
from tests.k8s.kubelet import RunningPod
from tests.k8s.rendering import NAMESPACE, RELEASE, Pod, named, pods

_HEAD = f"{RELEASE}-head-svc"


class Release:
    """`upgrade` it to another rendering: what is deployed then is of that one."""

    def __init__(
        self,
        objects: tuple[dict[str, Any], ...],
        machines: Sequence[Machine],
        models: Path,
        image: Image,
        folder: Path,
    ) -> None:
        self.objects = objects
        self._free = list(machines)
        self._models, self._image, self._folder = models, image, folder
        self.pods: dict[str, RunningPod] = {}
        self.hosts = folder / "hosts"
        self.resolve()

    def upgrade(self, objects: tuple[dict[str, Any], ...]) -> None:
        """Secrets stay: in a cluster the chart finds those that it made."""
        kept = [item for item in self.objects if item["kind"] == "Secret"]
        self.objects = (*kept, *(item for item in objects if item["kind"] != "Secret"))

    def deploy(self, name: str, component: str, machine: Machine | None = None) -> RunningPod:
        """Starts a pod under a name; `component` is as in its labels, or head and worker for Ray's."""
        pod = self._of(component)
        machine = machine or self._free.pop(0)
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o755)
        running = RunningPod(pod, machine, self.objects, self.hosts, self._image, folder, {"model": self._models})
        self.pods[name] = running
        running.start()
        self.resolve()
        return running

    def until(self, true: Callable[[], bool], seconds: float) -> None:
        """Waits, with names kept up to date as endpoints come and go."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, self.log()
            self.resolve()
            time.sleep(0.5)
        self.resolve()

    def resolve(self) -> None:
        """Writes the addresses of all services, in place: the file is mounted in every pod."""
        lines = ["127.0.0.1 localhost"]
        for item in self.objects:
            if item["kind"] == "Service":
                lines += self._lines(item["metadata"]["name"], self._endpoints(item["spec"]))
        if "head" in self.pods:
            lines += self._lines(_HEAD, [self.pods["head"].machine.address])
        with self.hosts.open("w") as file:
            file.write("\n".join(lines) + "\n")

    def log(self) -> str:
        return "\n".join(f"===== {name}, ready: {pod.ready}\n{pod.output[-3000:]}" for name, pod in self.pods.items())

    def uninstall(self) -> None:
        """Ends all pods at the same time, each with its grace period."""
        with ThreadPoolExecutor(len(self.pods)) as threads:
            list(threads.map(RunningPod.end, self.pods.values()))

    def processes(self) -> list[str]:
        """What runs on the machines that pods were on."""
        machines = {pod.machine.namespace for pod in self.pods.values()}
        return [
            psutil.Process(int(pid)).name()
            for name in machines
            for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=True).stdout.split()
        ]

    def stop(self) -> None:
        for pod in self.pods.values():
            pod.kill()

    def _endpoints(self, service: dict[str, Any]) -> list[str]:
        return [
            running.machine.address
            for running in self.pods.values()
            if service["selector"].items() <= running.pod.labels.items()
            and (running.ready or (service.get("publishNotReadyAddresses") and not running.leaving))
        ]

    def _lines(self, service: str, addresses: list[str]) -> list[str]:
        names = [service, *(f"{service}.{NAMESPACE}{rest}" for rest in ("", ".svc", ".svc.cluster.local"))]
        return [f"{address} {' '.join(names)}" for address in addresses]

    def _of(self, component: str) -> Pod:
        if component not in ("head", "worker"):
            (found,) = (pod for pod in pods(self.objects) if pod.component == component)
            return found
        spec = named(self.objects, "RayCluster", RELEASE)["spec"]
        group = spec["headGroupSpec"] if component == "head" else spec["workerGroupSpecs"][0]
        return _with_ray_start(group, component == "head")


def _with_ray_start(group: dict[str, Any], head: bool) -> Pod:
    """KubeRay's part: the command that starts Ray, with the CPUs and the memory of the container's limits."""
    made = group["template"]
    (container,) = made["spec"]["containers"]
    limits = container["resources"]["limits"]
    options = {"num-cpus": str(limits["cpu"]), "memory": str(_bytes(limits["memory"])), **group["rayStartParams"]}
    options |= {} if head else {"address": f"{_HEAD}.{NAMESPACE}.svc.cluster.local:6379"}
    words = " ".join(f"--{key}={value}" for key, value in options.items())
    start = f"ulimit -n 65536; ray start {'--head' if head else ''} --block {words}"
    container = {**container, "command": ["/bin/bash", "-c", "--"], "args": [start]}
    return Pod("RayCluster", made["metadata"]["labels"], {**made["spec"], "containers": [container]})


def _bytes(quantity: str) -> int:
    return int(quantity.removesuffix("Gi")) << 30
