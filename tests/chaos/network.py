"""Machines that are network namespaces on one switch: each with an address, and a memory file system of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_SHM = "64m"


class NoNetworks(RuntimeError):
    """This machine does not let us make network namespaces. The message says what failed."""


@dataclass(frozen=True)
class Machine:
    """`namespace` is its network's name, `plug` the switch's end of its cable."""

    name: str
    namespace: str
    address: str
    plug: str
    switch: str

    def command(self, arguments: Sequence[str], own: str = "") -> list[str]:
        """`arguments` as a command on this machine, which has a /dev/shm and, if given, a folder `own` to itself."""
        folder = f"mount -t tmpfs tmpfs {own} && " if own else ""
        script = f'mount -t tmpfs -o size={_SHM} tmpfs /dev/shm && {folder}exec "$@"'
        return [*self.inside, "unshare", "--mount", "sh", "-c", script, "sh", *arguments]

    def enter(self) -> None:
        """This thread, and those it starts, are on the machine's network from now on."""
        with open(f"/var/run/netns/{self.namespace}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                raise NoNetworks(os.strerror(ctypes.get_errno()))

    @property
    def inside(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace]

    def unplug(self) -> None:
        """Whatever is sent to or from the machine is lost, without a word to anybody."""
        _ip(f"-n {self.switch} link set dev {self.plug} down")

    def plug_in(self) -> None:
        _ip(f"-n {self.switch} link set dev {self.plug} up")

    def disturb(self, what: str) -> None:
        """Delays or loses what the machine sends: `what` is netem's own language, such as "delay 20ms loss 2%"."""
        _run(["tc", "-n", self.namespace, "qdisc", "add", "dev", "eth0", "root", "netem", *what.split()])

    def calm(self) -> None:
        _run(["tc", "-n", self.namespace, "qdisc", "del", "dev", "eth0", "root"])

    def can_be_disturbed(self) -> bool:
        """Whether the kernel has netem."""
        try:
            self.disturb("delay 1ms")
        except NoNetworks:
            return False
        self.calm()
        return True


@contextmanager
def machines(names: Sequence[str]) -> Iterator[list[Machine]]:
    """So many machines on one switch, gone at the end.

    Raises:
        NoNetworks: they cannot be made here.
    """
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        raise NoNetworks("iproute2 and util-linux are needed")
    mark = f"phx{os.getpid()}"
    switch = f"{mark}sw"
    with ExitStack() as stack:
        _namespace(stack, switch)
        _ip(f"-n {switch} link add name br0 type bridge")
        _ip(f"-n {switch} link set dev br0 up")
        made = []
        for number, name in enumerate(names, 1):
            machine = Machine(name, f"{mark}{name}", f"10.213.78.{number}", f"p{number}", switch)
            _namespace(stack, machine.namespace)
            _ip(f"link add name eth0 netns {machine.namespace} type veth peer name {machine.plug} netns {switch}")
            _ip(f"-n {machine.namespace} address add {machine.address}/24 dev eth0")
            _ip(f"-n {machine.namespace} link set dev eth0 up")
            _ip(f"-n {machine.namespace} link set dev lo up")
            _ip(f"-n {switch} link set dev {machine.plug} master br0 up")
            made.append(machine)
        yield made


def memory_of(pid: int) -> Path:
    """The /dev/shm of a process on a machine, seen from here."""
    return Path(f"/proc/{pid}/root/dev/shm")


def _namespace(stack: ExitStack, name: str) -> None:
    _ip(f"netns add {name}")
    stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)


def _ip(command: str) -> None:
    _run(["ip", *command.split()])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNetworks(f"{' '.join(command)}: {done.stderr.strip()}")
