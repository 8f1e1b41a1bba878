"""Triton's compiler makes machine code of the kernels that fits the GPUs it is for; none is needed to see that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

_ROOT = Path(__file__).resolve().parents[3]
_SHARED = 99 << 10  # bytes that a program may have on every GPU since Ampere
_SPILLED = 256  # bytes of a thread: what a quarter of its registers hold


@pytest.mark.parametrize("capability", [90, *(pytest.param(other, marks=pytest.mark.slow) for other in (80, 100, 120))])
def test_kernels_fit_into_registers_and_shared_memory(capability: int) -> None:
    command = [sys.executable, "-m", "tests.workers.gpu.machine_code", str(capability)]
    result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert {kernel["kernel"].split()[0] for kernel in kernels} == {
        "_add_norm", "_attend", "_expand", "_expand_floats", "_gated", "_join", "_one_shot", "_place", "_product",
        "_product_of_floats",
    }  # fmt: skip
    for kernel in kernels:
        assert kernel["shared"] <= _SHARED, kernel
        if "float32" not in kernel["kernel"]:
            assert kernel["stack"] <= _SPILLED, f"registers spill: {kernel}"
        if kernel["kernel"].startswith(("_attend", "_product")):
            assert kernel["matrix"], kernel
        if kernel["kernel"].startswith("_one_shot"):
            assert kernel["orders"] == ["acquire", "release"], "GPUs see each other's numbers in order"
