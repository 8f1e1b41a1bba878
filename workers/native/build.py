"""Compiles `csrc/*.cpp` into one shared library in the user's cache, once for each kind of processor.

`python -m workers.native.build` builds ahead of time and says where the library is. With `--into FOLDER` it compiles
every level into FOLDER instead, for machines without a compiler, which find it by $PHALANX_NATIVE_PREBUILT.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from partitioning.cache import PLACE, cache_folder

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "libphalanx.so"
SWITCH = "PHALANX_NATIVE"  # the environment variable that overrides the choice of a level
OFF = "off"
PREBUILT = "PHALANX_NATIVE_PREBUILT"  # the environment variable that names a folder filled by `prebuild`
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-pthread", "-Wall", "-Wextra")
_LINK = ("-shared", "-pthread", "-Wl,-z,defs")
_JOBS = 2
_LAST_LINES = 20


class BuildError(RuntimeError):
    """The library cannot be had on this machine; the text says why and what to do about it."""


@dataclass(frozen=True)
class Level:
    """A set of instructions: `needs` in the words of /proc/cpuinfo, and the compiler's `flags` for them."""

    name: str
    needs: frozenset[str]
    flags: tuple[str, ...]


_AVX512 = Level(
    "avx512",
    frozenset(("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "avx512_vbmi2",
               "fma", "f16c", "bmi2")),
    (
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16", "-mavx512vbmi2",
        "-mfma", "-mf16c", "-mbmi2", "-mprefer-vector-width=512",
    ),
)  # fmt: skip
_AMX = Level("amx", _AVX512.needs | {"amx_tile", "amx_bf16", "amx_int8"},
             (*_AVX512.flags, "-mamx-tile", "-mamx-bf16", "-mamx-int8"))  # fmt: skip
LEVELS = (
    _AMX,
    _AVX512,
    Level("avx2", frozenset(("avx2", "fma", "f16c")), ("-mavx2", "-mfma", "-mf16c")),
)
_ARM = Level("generic", frozenset(), ("-mcpu=native",))


def processor_flags() -> frozenset[str]:
    """What /proc/cpuinfo says that this machine's processor can do; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def choose_level(machine: str, flags: frozenset[str], wish: str | None = None) -> Level:
    """The best level of a processor, or the one wished for.

    Raises:
        BuildError: it has none of them.
        ValueError: the wish is none of the names, or the processor lacks its instructions.
    """
    names = [level.name for level in LEVELS]
    if wish and wish not in names:
        raise ValueError(f"{SWITCH}={wish}: choose one of {', '.join([*names, OFF])}")
    if wish:
        level = LEVELS[names.index(wish)]
        if missing := level.needs - flags:
            raise ValueError(f"{SWITCH}={wish}: this processor has no {', '.join(sorted(missing))}; unset {SWITCH}")
        return level
    if machine in ("aarch64", "arm64"):
        return _ARM
    for level in LEVELS:
        if level.needs <= flags:
            return level
    raise BuildError(f"there are no kernels for this processor ({machine} without AVX2, FMA and F16C)")


def switched_off() -> bool:
    return os.environ.get(SWITCH) == OFF


def find_compiler() -> list[str]:
    """The command of the C++ compiler: $CXX, g++ or clang++.

    Raises:
        BuildError: there is none.
    """
    wish = shlex.split(os.environ.get("CXX", ""))
    for command in (wish,) if wish else (["g++"], ["clang++"]):
        if shutil.which(command[0]):
            return command
    missing = f"CXX names {wish[0]}, which is not there" if wish else "there is no C++ compiler"
    raise BuildError(f"{missing}; install one (Debian and Ubuntu: apt-get install g++)")


def build(sources: Path = SOURCES, cache: Path | None = None) -> Path:
    """The library's path, after compiling it if this is its first use. Safe to call from many processes at once.

    Raises:
        BuildError: there is no compiler, it failed, or the cache cannot be written.
        ValueError: $PHALANX_NATIVE cannot be met.
    """
    wish = os.environ.get(SWITCH)
    level = choose_level(platform.machine(), processor_flags(), wish)
    levels = (level, _AVX512) if level is _AMX and not wish else (level,)  # whoever compiles may not know AMX
    if ready := os.environ.get(PREBUILT):
        for level in levels:
            path = Path(ready) / _prebuilt_name(sources, level) / LIBRARY
            if path.is_file():
                return path
    compiler = find_compiler()
    level = next((level for level in levels[:-1] if _knows(compiler, level.flags)), levels[-1])
    flags = [*_FLAGS, *_accepted(compiler, level.flags)]
    folder = (cache or cache_folder() / "native") / f"{level.name}-{_key(sources, compiler, flags)}"
    path = folder / LIBRARY
    if path.is_file():
        return path
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not path.is_file():
                _compile(sources, compiler, flags, folder)
    except OSError as error:
        raise BuildError(f"the compiled library cannot be kept: {error}; {PLACE} can name another folder") from error
    return path


def prebuild(into: Path, sources: Path = SOURCES) -> list[Path]:
    """The libraries of all levels in `into`, best first, after compiling those that are not there; without AMX's where
    the compiler does not know it (GCC before 11).

    Raises:
        BuildError: there is no compiler, it failed, or this is not an x86-64 machine.
    """
    if platform.machine() != "x86_64":
        raise BuildError(f"only libraries for x86-64 can be built ahead of their machine, not on {platform.machine()}")
    into.mkdir(parents=True, exist_ok=True)
    compiler = find_compiler()
    levels = LEVELS if _knows(compiler, _AMX.flags) else LEVELS[1:]
    folders = {level: into / _prebuilt_name(sources, level) for level in levels}
    for level, folder in folders.items():
        if not folder.exists():
            _compile(sources, compiler, [*_FLAGS, *level.flags], folder)
    return [folder / LIBRARY for folder in folders.values()]


def _prebuilt_name(sources: Path, level: Level) -> str:
    """Names level and sources: a library of other sources is not found, rather than used."""
    return f"{level.name}-{_digest(_contents(sources))}"


def _compile(sources: Path, compiler: list[str], flags: list[str], folder: Path) -> None:
    """Leaves a whole library in `folder`, or nothing."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as name:
        work = Path(name)
        units = sorted(sources.glob("*.cpp"))
        objects = [work / f"{unit.stem}.o" for unit in units]
        commands = [
            [*compiler, *flags, "-c", str(unit), "-o", str(target)] for unit, target in zip(units, objects, strict=True)
        ]
        with ThreadPoolExecutor(_JOBS) as pool:
            list(pool.map(_run, commands))
        result = work / "result"
        result.mkdir()
        _run([*compiler, *map(str, objects), *_LINK, "-o", str(result / LIBRARY)])
        result.rename(folder)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-_LAST_LINES:])
        raise BuildError(f"{shlex.join(command)} failed with exit code {done.returncode}:\n{last}")
    return done.stdout


def _accepted(compiler: list[str], flags: tuple[str, ...]) -> list[str]:
    """`-mcpu=native` is not known to every compiler; the others are asked for by name and must be there."""
    return list(flags) if flags != _ARM.flags or _knows(compiler, flags) else []


def _knows(compiler: list[str], flags: tuple[str, ...]) -> bool:
    command = [*compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _key(sources: Path, compiler: list[str], flags: list[str]) -> str:
    """Names everything that the library depends on."""
    parts = [" ".join([*compiler, *flags, *_LINK]).encode(), _run([*compiler, "--version"]).encode()]
    if platform.machine() in ("aarch64", "arm64"):  # "native" differs from one machine to the next
        parts.append(Path("/proc/cpuinfo").read_bytes().partition(b"\n\n")[0])
    return _digest([*parts, *_contents(sources)])


def _contents(sources: Path) -> list[bytes]:
    files = sorted([*sources.glob("*.cpp"), *sources.glob("*.h")])
    return [part for path in files for part in (path.name.encode(), path.read_bytes())]


def _digest(parts: list[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, and when its process dies
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the native kernels ahead of their first use.")
    parser.add_argument("--into", type=Path, help=f"a folder for every x86-64 processor's; ${PREBUILT} then names it")
    into: Path | None = parser.parse_args().into
    if into is not None:
        # An image without its kernels is a mistake: this fails where the rest of `main` makes do.
        print(*prebuild(into), sep="\n")
        return
    started = time.monotonic()
    if switched_off():
        print(f"{SWITCH}={OFF}: nothing to build")
        return
    try:
        path = build()
    except BuildError as error:
        print(f"The native kernels are left out, and everything runs on torch alone, slower: {error}", file=sys.stderr)
        return
    print(f"{path} ({time.monotonic() - started:.1f} s)")


if __name__ == "__main__":
    main()
