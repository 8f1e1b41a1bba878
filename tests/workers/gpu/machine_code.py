"""Has Triton make machine code for a GPU of every kernel, most with the sizes of Llama 3 8B, and prints a line of JSON
for each: what it needs of the GPU. Runs without one, in a process of its own: the tests' own interprets kernels.

    python -m tests.workers.gpu.machine_code 90
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from partitioning.quantised import FloatCodes, Quantised
from workers.gpu.attention import paged_attention
from workers.gpu.expansion import ExpandedLinear
from workers.gpu.float_products import FloatLinear
from workers.gpu.heads import place_heads
from workers.gpu.one_shot import OneShot
from workers.gpu.products import GroupLinear
from workers.gpu.rows import add_norm, gated, norm
from workers.gpu.tiles import PagedPlan, Tiles, Tiling
from workers.model.attention import KVCache
from workers.model.batch import Sequences
from workers.model.kept_rows import FloatRows, Int8Rows

_HIDDEN, _COLUMNS, _HEADS, _KV_HEADS, _BLOCK = 4096, 14336, 32, 8, 16
_OPTIONS = ("DIM", "ROWS", "SPLITS", "INT8", "WINDOW", "BITS", "OFFSETS", "GROUPS")


class _NoDevice:
    """What Triton asks its driver to compile."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _needs(kernel: Any) -> dict[str, object]:
    """Registers of a thread, bytes of its stack (into which registers spill), shared memory of a program, and whether
    matrix units are used."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    return {
        "registers": found["REG"],
        "stack": found["STACK"] + found["LOCAL"],
        "shared": kernel.metadata.shared,
        "matrix": "mma" in kernel.asm["ptx"],
        "orders": sorted(set(re.findall(r"atom\..*?(acquire|release)", kernel.asm["ptx"]))),
    }


def _compile(self: Any, *args: object, grid: object, warmup: bool, **kwargs: Any) -> Any:
    kernel = _run(self, *args, grid=grid, warmup=True, **kwargs)
    options = [f"{key}={kwargs[key]}" for key in _OPTIONS if key in kwargs]
    dtype = next(str(x.dtype) for x in args if isinstance(x, torch.Tensor))
    print(json.dumps({"kernel": " ".join([self.fn.__name__, dtype, *options]), **_needs(kernel)}), flush=True)
    return kernel


def _attention(cache: KVCache, dim: int, dtype: torch.dtype, window: int) -> None:
    tiling = Tiling([_HEADS // _KV_HEADS] * _KV_HEADS, dim * dtype.itemsize, torch.device("cpu"))
    slots, starts, firsts = torch.tensor([[0, 1], [0, 0], [0, 1]])
    plan = tiling.plan(Sequences(torch.zeros(4, 512, dtype=torch.int64), slots, starts, firsts, torch.tensor([1, 200])))
    q = torch.empty(201, _HEADS, dim, dtype=dtype)
    paged_attention(q, cache, plan, tiling, window, 1)
    paged_attention(q, cache, PagedPlan(plan.tables, plan.few, Tiles(plan.many.entries[:0], 16)), tiling, window, 1024)


def _heads(kind: type[FloatRows | Int8Rows], dim: int, dtype: torch.dtype) -> None:
    caches = [kind(8, _BLOCK, _KV_HEADS, dim, dtype, torch.device("cpu")) for _ in range(2)]
    cache = KVCache(*caches)
    for window in (0, 4096):
        _attention(cache, dim, dtype, window)
    qkv = torch.empty(2, _HEADS + 2 * _KV_HEADS, dim, dtype=dtype)
    rotary = torch.empty(2, 1, dim, dtype=dtype), torch.empty(2, 1, dim, dtype=dtype)
    weight = torch.empty(dim, dtype=dtype)
    for norms in (None, (weight, weight, 1e-5)):
        place_heads(qkv, norms, rotary, torch.zeros(2, dtype=torch.int64), cache)


def _products(dtype: torch.dtype) -> None:
    codes = torch.zeros(_HIDDEN, _HIDDEN, dtype=torch.uint8)
    scales = torch.empty(_HIDDEN, _HIDDEN // 32, dtype=torch.float16)
    linears: list[ExpandedLinear] = [
        GroupLinear(Quantised(bits, codes, scales, offsets), None) for bits, offsets in ((8, None), (4, scales))
    ]
    linears += [FloatLinear(FloatCodes(codes, each.float()), None) for each in (scales, scales[:, :1])]
    for linear in linears:
        for rows in (1, 32 if dtype == torch.float32 else 64):
            linear(torch.empty(rows, _HIDDEN, dtype=dtype))
        linear.expanded(dtype, 0, _HIDDEN)


def main() -> None:
    triton.runtime.driver.set_active(_NoDevice(int(sys.argv[1])))
    JITFunction.run = _compile
    x, weight = torch.empty(2, _HIDDEN, dtype=torch.bfloat16), torch.empty(_HIDDEN, dtype=torch.bfloat16)
    norm(x, weight, 1e-5)
    add_norm(x, x, weight, 1e-5)
    gated(torch.empty(2, 2 * _COLUMNS, dtype=torch.bfloat16))
    for kind in (FloatRows, Int8Rows):
        _heads(kind, 128, torch.bfloat16)
    _heads(FloatRows, 256, torch.bfloat16)
    _heads(FloatRows, 128, torch.float32)
    _products(torch.bfloat16)
    _products(torch.float32)
    for dtype in (torch.bfloat16, torch.float32):
        OneShot.of(1, [0] * 8, torch.device("cpu")).all_reduce(torch.empty(_HIDDEN, dtype=dtype))


if __name__ == "__main__":
    _run = JITFunction.run
    main()
