"""What this machine can do at this moment: python -m benchmarks.limits [THREADS] prints one JSON line.

read_gb_s: reading 512 MiB, gigabytes a second; bf16_gflop_s: a product of two bfloat16 matrices, billions of operations
a second. Each is the best of several ways (`ways` has all of them), and each way the median of some repetitions: a
limit that one way alone fails to reach would flatter whatever is compared with it. float32_registers_gflop_s and
int8_registers_gop_s: what vector registers allow where no operand comes from memory (not matrix registers); 0 where
there is no C compiler.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

_BYTES = 512 << 20  # far more than any cache
_REPEAT = 5
_PASSES = 4_000_000  # through the registers, some tens of milliseconds
_SOURCES = ("read_memory.c", "multiply_registers.c")
_READS = {"one stream": (1, 0), "one stream, prefetched": (1, 4096), "four streams": (4, 0)}
_SHAPES = ((512, 576, 3072), (1024, 1536, 1536), (2048, 2048, 2048), (1024, 4096, 4096))  # rows, inputs, outputs


def main(threads: int) -> None:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        native = _compiled(Path(folder))
        if native is None:
            print("no C compiler: reading is measured with torch alone, registers not at all", file=sys.stderr)
        registers = _registers(native, pool, threads)
        reads = _reads(native, pool, threads)
    products = _products()
    ways = {
        "read_gb_s": {name: _BYTES / seconds / 1e9 for name, seconds in reads.items()},
        "bf16_gflop_s": {name: rate / 1e9 for name, rate in products.items()},
    }
    print(json.dumps({**{limit: max(rates.values()) for limit, rates in ways.items()}, **registers, "ways": ways}))


def _registers(native: ctypes.CDLL | None, pool: ThreadPoolExecutor, threads: int) -> dict[str, float]:
    """Billions of operations a second, the best of some repetitions: nothing can be faster by accident."""
    rates = {}
    for name, kind in (("float32_registers_gflop_s", "float"), ("int8_registers_gop_s", "byte")):
        rates[name] = 0.0
        if native is None:
            continue
        multiply, operations = getattr(native, f"multiply_{kind}s"), getattr(native, f"{kind}_operations")()
        for _ in range(_REPEAT):
            started = perf_counter()
            list(pool.map(multiply, [_PASSES] * threads))
            rate = operations * _PASSES * threads / (perf_counter() - started) / 1e9
            rates[name] = max(rates[name], rate)
    return rates


def _reads(native: ctypes.CDLL | None, pool: ThreadPoolExecutor, threads: int) -> dict[str, float]:
    """Seconds to read the block in each way."""
    pages = mmap.mmap(-1, _BYTES)
    pages.madvise(mmap.MADV_HUGEPAGE)
    block = torch.frombuffer(pages, dtype=torch.float32)
    block.fill_(1.0)
    seconds = {"torch sum": _seconds(block.sum), "torch dot": _seconds(lambda: torch.dot(block, block))}
    if native is None:
        return seconds
    read, share = native.read_memory, _BYTES // threads
    starts = [block.data_ptr() + number * share for number in range(threads)]

    def all_threads(streams: int, ahead: int) -> None:
        list(pool.map(lambda start: read(start, share, streams, ahead), starts))

    for name, way in _READS.items():
        seconds[name] = _seconds(partial(all_threads, *way))
    return seconds


def _compiled(folder: Path) -> ctypes.CDLL | None:
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    sources, target = [str(Path(__file__).with_name(name)) for name in _SOURCES], folder / "limits.so"
    flags = ["-O3", "-march=native"] + (["-mprefer-vector-width=512"] if "avx512f" in _cpu_flags() else [])
    subprocess.run([compiler, *flags, "-shared", "-fPIC", *sources, "-o", str(target)], check=True)
    native = ctypes.CDLL(str(target))
    native.read_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t]
    native.read_memory.restype = ctypes.c_uint64
    for kind in ("float", "byte"):
        getattr(native, f"multiply_{kind}s").argtypes = [ctypes.c_size_t]
        getattr(native, f"{kind}_operations").restype = ctypes.c_size_t
    return native


def _cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


@torch.inference_mode()
def _products() -> dict[str, float]:
    """Operations a second for each shape, with the weights as they are, packed beforehand by oneDNN, and as float32,
    which is what a processor without instructions for bfloat16 has to make of them."""
    rates = {}
    for rows, inputs, outputs in _SHAPES:
        left = torch.randn(rows, inputs, dtype=torch.bfloat16)
        weight = torch.randn(outputs, inputs, dtype=torch.bfloat16)
        wide_left, wide_weight = left.float(), weight.float()
        ways: dict[str, Callable[[], object]] = {
            "plain": partial(torch.matmul, left, weight.T),
            "as float32": partial(torch.matmul, wide_left, wide_weight.T),
        }
        with suppress(RuntimeError):  # where the processor has no instructions for it
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            ways["packed"] = partial(torch.ops.mkldnn._linear_pointwise, left, packed, None, "none", [], "")
        for name, product in ways.items():
            rates[f"{rows} × {inputs} × {outputs} {name}"] = 2 * rows * inputs * outputs / _seconds(product)
    return rates


def _seconds(work: Callable[[], object]) -> float:
    """Median over some repetitions, each long enough for the clock, after one to warm up."""
    work()
    times = []
    for _ in range(_REPEAT):
        started, count = perf_counter(), 0
        while not count or perf_counter() - started < 0.02:
            work()
            count += 1
        times.append((perf_counter() - started) / count)
    return median(times)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
