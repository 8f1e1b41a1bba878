"""What this machine can do at this moment: python -m benchmarks.limits prints one JSON line."""

from __future__ import annotations

import json
from statistics import median
from time import perf_counter

import torch


def main(threads: int = 2) -> None:
    torch.set_num_threads(threads)
    block = torch.ones(64 << 20)  # 256 MiB, far more than any cache
    left = torch.randn(2048, 2048, dtype=torch.bfloat16)
    right = torch.randn(2048, 2048, dtype=torch.bfloat16)
    read = median(_seconds(lambda: block.sum()) for _ in range(5))
    gemm = median(_seconds(lambda: left @ right) for _ in range(5))
    print(json.dumps({"read_gb_s": block.nbytes / read / 1e9, "bf16_gflop_s": 2 * 2048**3 / gemm / 1e9}))


def _seconds(work: object) -> float:
    assert callable(work)
    started = perf_counter()
    work()
    return perf_counter() - started


if __name__ == "__main__":
    main()
