"""What a kubelet does for a pod: volumes, init containers, probes, restarts, and an end with a grace period."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chaos.network import Machine
from tests.k8s.container import Container, Image, Place
from tests.k8s.rendering import Pod

_LOOK_S = 1.0
_GRPC_PROBE = """
import sys, grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    request = health_pb2.HealthCheckRequest(service=sys.argv[2])
    sys.exit(health_pb2_grpc.HealthStub(channel).Check(request, timeout=float(sys.argv[3])).status != 1)
"""


class RunningPod:
    """A pod on a machine of its own. `objects` has its ConfigMaps and Secrets, `filled` what its empty volumes hold at
    the start, by name."""

    def __init__(
        self,
        pod: Pod,
        machine: Machine,
        objects: tuple[dict[str, Any], ...],
        hosts: Path,
        image: Image,
        folder: Path,
        filled: Mapping[str, Path],
    ) -> None:
        self.pod, self.machine = pod, machine
        self._objects, self._folder = objects, folder
        user = pod.spec["securityContext"]["runAsUser"]
        volumes = {volume["name"]: self._volume(volume, user, filled) for volume in pod.spec["volumes"]}
        place = Place(user, volumes, machine, hosts, folder)

        def container(spec: dict[str, Any]) -> Container:
            environment = {entry["name"]: self._value(entry) for entry in spec.get("env", [])}
            return image(spec, environment, place)

        self._first = [container(spec) for spec in pod.spec.get("initContainers", [])]
        (self._spec,) = pod.spec["containers"]
        self.container = container(self._spec)
        self.ready = self.leaving = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> float:
        """Ends the pod as its deletion does; returns after how many seconds it was gone."""
        started = time.monotonic()
        self.leaving, self.ready = True, False
        self._over.set()
        self._thread.join()
        time.sleep(self._spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))
        self.container.terminate()
        try:
            self.container.wait(self.pod.spec.get("terminationGracePeriodSeconds", 30))
        except subprocess.TimeoutExpired:
            self.kill()
        return time.monotonic() - started

    def kill(self) -> None:
        """Ends the pod at once, as the loss of its node does."""
        self.leaving, self.ready = True, False
        self._over.set()
        self._thread.join()
        self.container.kill()
        self.container.wait(20)

    @property
    def output(self) -> str:
        return "\n".join(container.output for container in (*self._first, self.container))

    def _live(self) -> None:
        for container in self._first:
            while container.starts == 0 or container.code != 0:
                container.start()
                container.wait(120)
        self.container.start()
        alive = time.monotonic()
        while not self._over.wait(_LOOK_S):
            liveness, readiness = self._spec.get("livenessProbe"), self._spec.get("readinessProbe")
            if liveness is None or self._passes(liveness) or not self._started():
                alive = time.monotonic()
            dead = liveness and time.monotonic() - alive > liveness["failureThreshold"] * liveness["periodSeconds"]
            if dead:
                self.container.kill()
                self.container.wait(20)
            if self.container.code is not None:
                if self.pod.spec.get("restartPolicy") == "Never":
                    return
                self._over.wait(2)
                self.container.start()
                alive = time.monotonic()
            self.ready = not self.leaving and (readiness is None or self._passes(readiness))

    def _started(self) -> bool:
        startup = self._spec.get("startupProbe")
        return startup is None or self._passes(startup)

    def _passes(self, probe: dict[str, Any]) -> bool:
        seconds = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            return self.container.run(probe["exec"]["command"], seconds)
        asked = [f"{self.machine.address}:{probe['grpc']['port']}", probe["grpc"]["service"], str(seconds)]
        command = [*self.machine.inside, sys.executable, "-c", _GRPC_PROBE, *asked]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def _volume(self, volume: dict[str, Any], user: int, filled: Mapping[str, Path]) -> Path | str:
        if "emptyDir" in volume and volume["emptyDir"].get("medium") == "Memory":
            return str(volume["emptyDir"]["sizeLimit"]).removesuffix("i")
        folder = self._folder / "volumes" / str(volume["name"])
        folder.mkdir(parents=True)
        if "emptyDir" in volume:
            if volume["name"] in filled:
                shutil.copytree(filled[volume["name"]], folder, dirs_exist_ok=True)
            subprocess.run(["chown", "-R", f"{user}:{user}", str(folder)], check=True)
        elif "configMap" in volume:
            for key, text in self._object("ConfigMap", volume["configMap"]["name"])["data"].items():
                (folder / key).write_text(text)
        elif "secret" in volume:
            for key, value in self._object("Secret", volume["secret"]["secretName"])["data"].items():
                (folder / key).write_bytes(base64.b64decode(value))
        else:
            raise NotImplementedError(f"a volume of the kind {volume}")
        return folder

    def _value(self, entry: dict[str, Any]) -> str:
        if "value" in entry:
            return str(entry["value"])
        reference = entry["valueFrom"]["secretKeyRef"]
        return base64.b64decode(self._object("Secret", reference["name"])["data"][reference["key"]]).decode()

    def _object(self, kind: str, name: str) -> dict[str, Any]:
        (found,) = (item for item in self._objects if item["kind"] == kind and item["metadata"]["name"] == name)
        return found
