"""Joules that the machine itself reports: RAPL counters of Intel and AMD, and NVIDIA's NVML. Nothing is estimated."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


class Meters:
    """The counters that can be read. RAPL's need root on most systems."""

    def __init__(self, powercap: Path = _POWERCAP) -> None:
        # Packages, and memory outside them; "psys" and parts of packages would count twice.
        zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _counts(zone)]
        self._zones = [zone for zone in zones if _read(zone / "energy_uj") is not None]
        self._started = self._now()

    def start(self) -> None:
        self._started = self._now()

    def joules(self) -> float | None:
        """Since start; None where the machine reports nothing."""
        if not self._started:
            return None
        total = 0.0
        for (before, most), (after, _) in zip(self._started, self._now(), strict=True):
            total += (after - before) % most if most else after - before
        return total

    def _now(self) -> list[tuple[float, float]]:
        """Each counter in joules, and where it begins anew; 0 for never."""
        found = [(_joules(zone / "energy_uj"), _joules(zone / "max_energy_range_uj")) for zone in self._zones]
        return found + [(joules, 0.0) for joules in _gpus()]


def _counts(zone: Path) -> bool:
    name = (zone / "name").read_text(encoding="utf-8").strip()
    return name.startswith("package") or name == "dram"


def _joules(file: Path) -> float:
    return (_read(file) or 0) / 1e6


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="utf-8"))
    except OSError:
        return None


def _gpus() -> list[float]:
    """Of every GPU since its driver was loaded."""
    if find_spec("pynvml") is None:
        return []
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    return [nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 for handle in handles]
