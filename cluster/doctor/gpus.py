"""Are GPUs seen, does torch's CUDA work with the driver, is their memory free, and can our kernels run there?"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from cluster.doctor.finding import Finding, failed, ok, warning
from workers.gpu.ready import REMEDY

_CHECK = "GPUs"
_TRY_S = 120
# In a process of its own: it holds some hundred megabytes of each GPU's memory, and gives them back.
_TRY = """
import json, torch
from workers.gpu.ready import missing
sizes = []
for number in range(torch.cuda.device_count()):
    torch.zeros(1, device=f"cuda:{number}")
    sizes.append([torch.cuda.get_device_name(number), *torch.cuda.mem_get_info(number)])
print(json.dumps([sizes, missing()]))
"""


def gpus(wanted: int | None, needed: int) -> Finding:
    """`wanted` of them (None: those there are), with `needed` bytes free on each that is used."""
    driver, built = driver_cuda(), torch_cuda()
    if not wanted and driver is None:
        return ok(_CHECK, "none: ranks here compute on the CPU")
    if driver is None:
        return failed(
            _CHECK, f"{wanted} wanted, and there is no NVIDIA driver", "install it, or serve with devices: cpu"
        )
    if built is None:
        text = f"the driver is there (CUDA {driver}), but torch is built without CUDA"
        return failed(_CHECK, text, "install torch's CUDA build, or serve with devices: cpu")
    if built.partition(".")[0] > driver.partition(".")[0]:
        text = f"torch is built for CUDA {built}, the driver knows up to {driver}"
        return failed(_CHECK, text, "update the driver, or install a torch for the driver's CUDA")
    try:
        found, kernels_lack = _tried()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error) if isinstance(error, subprocess.TimeoutExpired) else error.stderr.strip().splitlines()[-1]
        text = f"torch cannot compute on them: {said}"
        return failed(_CHECK, text, "see nvidia-smi: another process may hold them, or the driver may need a restart")
    text = f"CUDA {built}, driver up to {driver}; " + ", ".join(f"{n} {f / 1e9:.0f} GB free" for n, f, _ in found)
    if len(found) < (wanted or 0):
        return failed(
            _CHECK, f"{wanted} wanted, torch sees {len(found)}: {text}", "see nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    if sum(free >= needed for _, free, _ in found) < (wanted or 0):
        return failed(_CHECK, f"{needed / 1e9:.1f} GB needed on each: {text}", "end what uses their memory: nvidia-smi")
    if kernels_lack is not None:
        return warning(_CHECK, f"{text}; torch's own kernels alone, slower: {kernels_lack}", REMEDY)
    return ok(_CHECK, text)


def driver_cuda() -> str | None:
    """The newest CUDA that the driver knows, such as 12.8; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def torch_cuda() -> str | None:
    """The CUDA that torch was built for, without importing it; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    found = re.search(r"^cuda\b.*= '([\d.]+)'", (Path(spec.origin).parent / "version.py").read_text(), re.MULTILINE)
    return found and found[1]


def _tried() -> tuple[list[tuple[str, int, int]], str | None]:
    """Name, free and all bytes of each GPU, after something was computed on it, and what Triton lacks there.

    Raises:
        subprocess.SubprocessError: it could not be, or not in time.
    """
    command = [sys.executable, "-c", _TRY]
    done = subprocess.run(command, env=_every_gpu(), capture_output=True, text=True, timeout=_TRY_S, check=True)
    sizes, kernels_lack = json.loads(done.stdout.splitlines()[-1])
    return [tuple(size) for size in sizes], kernels_lack


def _every_gpu() -> dict[str, str]:
    """Ray hides all GPUs from processes that have reserved none."""
    return {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES" or value}
