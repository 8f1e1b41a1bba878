"""What this machine's processor can do, measured once and remembered.

The cost model needs how fast cores read and multiply. Data sheets do not say that of a virtual machine, so it is tried:
adding up an array that no cache holds, and a bf16 matrix product, on one core and on all of them. The product is
torch's, which takes the processor's best instructions, as the native engine does (docs/performance.md, row 31): those
of float32 where bf16 has none and torch computes it dozens of times slower.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from partitioning.cache import cache_folder

_FORMAT = 2
_ARRAY_BYTES = 256 << 20
_PRODUCT = 1536  # rows, columns and depth
_SAMPLE = 256  # the same, to see which type is quicker
_TRIES = 5


@dataclass(frozen=True)
class HostSpeed:
    """Bytes a second that one core reads from memory and that all of them do together; bf16 operations a second of one
    core. `measured` is False for figures that are assumed."""

    core_bandwidth: float
    host_bandwidth: float
    core_flops: float
    measured: bool = False


# One modern server core (Zen 4 or Sapphire Rapids, AVX-512 bf16), measured on a two-core virtual machine; a socket's
# memory is saturated by about eight cores.
ASSUMED = HostSpeed(core_bandwidth=25e9, host_bandwidth=200e9, core_flops=200e9)


def host_speed(cores: int, *, anew: bool = False, path: Path | None = None) -> HostSpeed:
    """This machine's figures for `cores` cores: from the user's cache, or measured in about a second.

    A file that is damaged or of another machine is measured and written again; one that cannot be written costs the
    second each time.
    """
    path = path or cache_folder() / "host_speed.json"
    key = {"format": _FORMAT, "processor": _processor(), "cores": cores}
    if not anew:
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known.pop("key") == key:
                return HostSpeed(**{name: float(value) for name, value in known.items()}, measured=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
    speed = _measure(cores)
    figures = {name: value for name, value in asdict(speed).items() if name != "measured"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump({"key": key, **figures}, file)
        os.replace(file.name, path)
    except OSError:
        pass
    return speed


def _measure(cores: int) -> HostSpeed:
    import torch  # takes a second, which reading known figures need not

    threads = torch.get_num_threads()
    array = torch.ones(_ARRAY_BYTES // 4)
    try:
        torch.set_num_threads(1)
        core = _ARRAY_BYTES / _seconds(array.sum)
        torch.set_num_threads(cores)
        host = _ARRAY_BYTES / _seconds(array.sum)
        best = min(("bfloat16", "float32"), key=lambda dtype: _seconds(_product(_SAMPLE, dtype)))
        flops = 2 * _PRODUCT**3 / _seconds(_product(_PRODUCT, best))
    finally:
        torch.set_num_threads(threads)
    return HostSpeed(core, max(core, host), flops / cores, measured=True)


def _product(size: int, dtype: str) -> Callable[[], object]:
    import torch

    left, right = (torch.randn(size, size, dtype=getattr(torch, dtype)) for _ in range(2))
    return lambda: left @ right


def _seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_TRIES):
        started = perf_counter()
        work()
        times.append(perf_counter() - started)
    return median(times)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
