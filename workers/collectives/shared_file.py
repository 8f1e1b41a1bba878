"""Files in memory that the ranks of one host map."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from torch._C._distributed_c10d import Store


def shared_folder() -> Path:
    return Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(os.environ.get("TMPDIR", "/tmp"))


def host_key() -> str:
    """The same for two processes if they can map each other's files: one kernel, one file system, one user.

    Containers of one host differ, unless they share their /dev/shm.
    """
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        kernel = socket.gethostname()
    folder = shared_folder()
    return f"{kernel}:{folder}:{os.stat(folder).st_dev}:{os.getuid()}"


def create_file(size: int) -> Path:
    """Makes a file of `size` zeros; every rank opens it, then one removes its name.

    Raises:
        OSError: the shared-memory file system has no room (containers often get 64 MB).
    """
    folder = shared_folder()
    path = folder / f"phalanx-{os.getpid()}-{os.urandom(16).hex()}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR, 0o600)
    try:
        os.fchmod(fd, 0o600)  # whatever the umask says
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        path.unlink()
        raise OSError(
            error.errno,
            f"no room for {size} bytes of shared memory in {folder} (in a container, raise its shm size)",
        ) from error
    finally:
        os.close(fd)
    return path


def open_file(path: Path) -> int:
    """A descriptor of a file that `create_file` made in a process of this user.

    Raises:
        OSError: there is none, or it is somebody else's.
    """
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o600:
        os.close(fd)
        raise OSError(f"{path} is not a file that this user alone may open, and could be read or written by others")
    return fd


class SharedFiles:
    """Hands the files of one rank to the ranks that open them, through the replica's store.

    As every rank makes all of its files before it looks for those of others, none waits for one that waits for it. On
    leaving the `with` block the files lose their names, once everyone has opened them.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank = store, rank
        self._made: dict[str, Path] = {}
        self._openings: list[str] = []

    def make(self, name: str, size: int, openers: Iterable[int]) -> None:
        """A file of `size` zeros for this rank and the `openers`."""
        self._made[name] = create_file(size)
        self._openings += [f"opened/{name}/{rank}" for rank in openers]
        self._store.set(f"file/{name}", str(self._made[name]))

    def path(self, name: str) -> Path:
        """Waits until the file is there. Tell `opened` when it is open."""
        return self._made[name] if name in self._made else Path(self._store.get(f"file/{name}").decode())

    def opened(self, name: str) -> None:
        if name not in self._made:
            self._store.set(f"opened/{name}/{self._rank}", "1")

    def __enter__(self) -> SharedFiles:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                for opening in self._openings:
                    self._store.get(opening)
        finally:
            for path in self._made.values():
                path.unlink(missing_ok=True)
