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

ROOT = Path(__file__).resolve().parents[2]
_CODE = "/opt/code"
_KERNELS = "/opt/kernels"
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "usr")
_PASSWD = "root:x:0:0::/root:/bin/sh\nphalanx:x:{user}:{user}::/home/phalanx:/bin/sh\n"


class Container:
    """`volumes` are the pod's, as folders here, or a size for one in memory; `hosts` is its /etc/hosts, `inside` the
    command that enters its network, `kernels` the folder of native libraries that the image has."""

    def __init__(
        self,
        spec: dict[str, Any],
        user: int,
        volumes: Mapping[str, Path | str],
        environment: Mapping[str, str],
        inside: Sequence[str],
        hosts: Path,
        kernels: Path,
        folder: Path,
    ) -> None:
        self.name: str = spec["name"]
        self._spec, self._user, self._volumes = spec, user, volumes
        self._inside, self._hosts, self._kernels, self._folder = list(inside), hosts, kernels, folder
        self._environment = {
            "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/home/phalanx",
            "PYTHONPATH": f"{_CODE}:{_CODE}/proto",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PHALANX_NATIVE_PREBUILT": _KERNELS,
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def output(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob(f"{self.name}-*.log")))

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def start(self) -> None:
        root = self._folder / f"{self.name}-root"
        root.mkdir(exist_ok=True)
        script = self._folder / f"{self.name}.sh"
        script.write_text(self._script(root))
        enter = [*self._inside, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child=SIGKILL"]
        with (self._folder / f"{self.name}-{self.starts}.log").open("w") as log:
            self._process = subprocess.Popen(
                [*enter, "sh", "-e", str(script), *self._command()], stdout=log, stderr=log, start_new_session=True
            )
        self.starts += 1

    def run(self, command: Sequence[str], seconds: float) -> bool:
        """Whether a command inside succeeds in time."""
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
        """What a kubelet sends first."""
        if (first := self._first()) is not None:
            first.terminate()

    def kill(self) -> None:
        assert self._process is not None
        if (first := self._first()) is not None:
            with suppress(psutil.NoSuchProcess):
                first.kill()  # and with it everything in its pid namespace
        self._process.kill()

    def wait(self, seconds: float) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def _first(self) -> psutil.Process | None:
        """Process 1 of the container."""
        assert self._process is not None
        try:
            children = psutil.Process(self._process.pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0] if children else None

    def _command(self) -> list[str]:
        return self._as_user([*self._spec["command"], *self._spec.get("args", [])])

    def _as_user(self, command: Sequence[str]) -> list[str]:
        identity = [f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]
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
            f"printf '{_PASSWD.format(user=self._user)}' > etc/passwd",
            "echo multi on > etc/host.conf",  # a name may have several addresses, as in DNS
            f"touch etc/hosts && mount --bind {self._hosts} etc/hosts",
            f"mkdir -p .{_CODE} .{_KERNELS}",
            f"mount --bind -o ro {ROOT} .{_CODE}",
            f"mount --bind -o ro {self._kernels} .{_KERNELS}",
        ]
        for mount in self._spec["volumeMounts"]:
            made += self._mount(mount)
        for path in dict.fromkeys((sys.base_prefix, sys.prefix)):
            if not path.startswith("/usr"):
                made.append(f"mkdir -p .{path} && mount --bind -o ro {path} .{path}")
        made += [f"hostname {self._folder.name}", f"mount -o remount,ro {root}", f'exec chroot {root} "$@"']
        return "\n".join(made) + "\n"

    def _mount(self, mount: dict[str, Any]) -> list[str]:
        target, source = f".{mount['mountPath']}", self._volumes[mount["name"]]
        if isinstance(source, str):
            return [f"mkdir -p {target}", f"mount -t tmpfs -o size={source},mode=1777 tmpfs {target}"]
        source = source / mount.get("subPath", "")
        option = "-o ro" if mount.get("readOnly") else ""
        make = f"mkdir -p {target}" if source.is_dir() else f"mkdir -p $(dirname {target}) && touch {target}"
        return [make, f"mount --bind {option} {source} {target}"]
