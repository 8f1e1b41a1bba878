"""One container of a rendered pod as a process: the image is this machine's system and Python, everything else is as
rendered: command, environment, user, read-only root, mounts. Needs root."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.k8s.container import Container, Place

ROOT = Path(__file__).resolve().parents[2]
_CODE = "/opt/code"
_KERNELS = "/opt/kernels"
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "usr")
_PASSWD = "root:x:0:0::/root:/bin/sh\nphalanx:x:{user}:{user}::/home/phalanx:/bin/sh\n"


class HostContainer(Container):
    """`kernels` is the folder of native libraries that the image has."""

    def __init__(self, kernels: Path, spec: dict[str, Any], environment: Mapping[str, str], place: Place) -> None:
        built_in = {
            "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/home/phalanx",
            "PYTHONPATH": f"{_CODE}:{_CODE}/proto",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PHALANX_NATIVE_PREBUILT": _KERNELS,
            "OMP_NUM_THREADS": "1",
        }
        super().__init__(spec, {**built_in, **environment}, place)
        self._kernels = kernels

    def run(self, command: Sequence[str], seconds: float) -> bool:
        first = self._first()
        if first is None:
            return False
        enter = ["nsenter", f"--target={first.pid}", "--mount", "--uts", "--pid", "--net", "--root", "--wd=/"]
        try:
            done = subprocess.run([*enter, *self._as_user(command)], capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def terminate(self) -> None:
        if (first := self._first()) is not None:
            first.terminate()

    def kill(self) -> None:
        assert self._process is not None
        if (first := self._first()) is not None:
            with suppress(psutil.NoSuchProcess):
                first.kill()  # and with it everything in its pid namespace
        self._process.kill()

    def _first(self) -> psutil.Process | None:
        """Process 1 of the container."""
        assert self._process is not None
        try:
            children = psutil.Process(self._process.pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0] if children else None

    def _starting(self) -> list[str]:
        root = self._place.folder / f"{self.name}-root"
        root.mkdir(exist_ok=True)
        script = self._place.folder / f"{self.name}.sh"
        script.write_text(self._script(root))
        enter = [*self._place.machine.inside, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child=SIGKILL"]
        return [*enter, "sh", "-e", str(script), *self._as_user(self._command)]

    def _as_user(self, command: Sequence[str]) -> list[str]:
        identity = [f"--reuid={self._place.user}", f"--regid={self._place.user}", "--clear-groups"]
        powers = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        values = [f"{name}={value}" for name, value in self._environment.items()]
        return ["setpriv", *identity, *powers, "env", "--ignore-environment", *values, *command]

    def _script(self, root: Path) -> str:
        """Builds the file system below `root`, and runs the arguments in it."""
        made = [f"mount -t tmpfs -o mode=755 tmpfs {root}", f"cd {root}", "mkdir -p etc proc dev sys var opt root tmp"]
        for name in _SYSTEM:
            path = Path("/") / name
            if path.is_symlink():
                made.append(f"ln -s {path.readlink()} {name}")
            elif path.is_dir():
                made.append(f"mkdir -p {name} && mount --rbind -o ro {path} {name}")
        made += [
            "mount -t proc proc proc",
            "mount --rbind /dev dev",
            "mount -t tmpfs -o size=64m,mode=1777 tmpfs dev/shm",
            "cp -a /etc/ld.so.* /etc/nsswitch.conf /etc/ssl /etc/localtime etc/ 2>/dev/null || true",
            f"printf '{_PASSWD.format(user=self._place.user)}' > etc/passwd",
            "echo multi on > etc/host.conf",  # a name may have several addresses, as in DNS
            f"touch etc/hosts && mount --bind {self._place.hosts} etc/hosts",
            f"mkdir -p .{_CODE} .{_KERNELS}",
            f"mount --bind -o ro {ROOT} .{_CODE}",
            f"mount --bind -o ro {self._kernels} .{_KERNELS}",
        ]
        for mount in self._spec["volumeMounts"]:
            made += self._mount(mount)
        for path in dict.fromkeys((sys.base_prefix, sys.prefix)):
            if not path.startswith("/usr"):
                made.append(f"mkdir -p .{path} && mount --bind -o ro {path} .{path}")
        made += [f"hostname {self._place.folder.name}", f"mount -o remount,ro {root}", f'exec chroot {root} "$@"']
        return "\n".join(made) + "\n"

    def _mount(self, mount: dict[str, Any]) -> list[str]:
        target, source = f".{mount['mountPath']}", self._place.volumes[mount["name"]]
        if isinstance(source, str):
            return [f"mkdir -p {target}", f"mount -t tmpfs -o size={source},mode=1777 tmpfs {target}"]
        source = source / mount.get("subPath", "")
        option = "-o ro" if mount.get("readOnly") else ""
        make = f"mkdir -p {target}" if source.is_dir() else f"mkdir -p $(dirname {target}) && touch {target}"
        return [make, f"mount --bind {option} {source} {target}"]
