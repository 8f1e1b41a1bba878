"""One container of a rendered pod on the image that `make image` builds: podman runs it with the pod's user, limits,
mounts and security context, in the network of its machine. Needs root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from tests.k8s.container import Container


def missing(image: str) -> str | None:
    """Why containers of an image cannot be started here, if they cannot."""
    if shutil.which("podman") is None:
        return "needs podman"
    if subprocess.run(["podman", "image", "exists", image], capture_output=True, check=False).returncode:
        return f"podman has no image {image}: make image BUILDER=podman"
    tried = subprocess.run(
        ["podman", "run", "--rm", "--network=none", "--pull=never", image, "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"podman starts no containers here: {tried.stderr.strip()}" if tried.returncode else None


class PodmanContainer(Container):
    def run(self, command: Sequence[str], seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                ["podman", "exec", self._id, *command], capture_output=True, timeout=seconds, check=False
            )
            return done.returncode == 0
        return False

    def terminate(self) -> None:
        subprocess.run(["podman", "kill", "--signal=TERM", self._id], capture_output=True, check=False)

    def kill(self) -> None:
        # Gone already, if it ended by itself.
        subprocess.run(["podman", "rm", "--force", "--ignore", "--time=0", self._id], capture_output=True, check=False)

    @property
    def _id(self) -> str:
        return f"{self._place.machine.namespace}-{self._place.folder.name}-{self.name}"

    def _starting(self) -> list[str]:
        machine, user = self._place.machine, self._place.user
        return [
            "podman", "run", "--rm", "--replace", f"--name={self._id}", "--pull=never", "--log-driver=none",
            f"--network=ns:/run/netns/{machine.namespace}", f"--hostname={self._place.folder.name}",
            # All names are in that file; a server that nobody listens at answers at once that it has no others.
            "--no-hosts", f"--volume={self._place.hosts}:/etc/hosts:ro", "--dns=127.0.0.1", f"--user={user}:{user}",
            *self._security(), *self._limits(), *self._mounts(),
            *(f"--env={name}={value}" for name, value in self._environment.items()),
            self._spec["image"], *self._command,
        ]  # fmt: skip

    def _security(self) -> list[str]:
        context = self._spec["securityContext"]
        options = [f"--cap-drop={capability}" for capability in context["capabilities"]["drop"]]
        options += ["--read-only", "--read-only-tmpfs=false"] if context["readOnlyRootFilesystem"] else []
        return options if context["allowPrivilegeEscalation"] else [*options, "--security-opt=no-new-privileges"]

    def _limits(self) -> list[str]:
        limits = self._spec.get("resources", {}).get("limits", {})
        memory = [f"--memory={limits['memory'].removesuffix('i')}"] if "memory" in limits else []
        return [*memory, f"--cpus={limits['cpu']}"] if "cpu" in limits else memory

    def _mounts(self) -> list[str]:
        options = []
        for mount in self._spec["volumeMounts"]:
            source, target = self._place.volumes[mount["name"]], mount["mountPath"]
            if isinstance(source, str):
                options.append(f"--tmpfs={target}:size={source},mode=1777")
            else:
                mode = "ro" if mount.get("readOnly") else "rw"
                options.append(f"--volume={source / mount.get('subPath', '')}:{target}:{mode}")
        return options
