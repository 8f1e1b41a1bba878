"""Native code for processors that are not at hand: `emulation/immintrin.h` has the instructions of AVX-512 and AMX in
plain C++, and registers of four lanes, as ARM's are, the compiler has everywhere."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from workers.native.build import LEVELS, PREBUILT, SOURCES, SWITCH, BuildError, _compile, _prebuilt_name, find_compiler

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
AVX512 = tuple(f"-D__AVX512{part}__" for part in ("F", "BF16", "VNNI", "VBMI2"))
AMX = tuple(f"-D__AMX_{part}__" for part in ("TILE", "BF16", "INT8"))
EMULATED = ("-mavx2", "-mfma", "-mf16c", "-Wno-psabi", f"-I{HERE / 'emulation'}", *AVX512)
LEVEL_FLAGS = {"avx512": EMULATED, "amx": (*EMULATED, *AMX), "generic": ()}
KINDS = {"avx512": "1 0", "amx": "1 1", "generic": "0 0"}  # whether zeros are skipped, and AMX's registers used
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-pthread")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the library without optimisation, then all tests with instructions written out
@pytest.mark.skipif(platform.machine() != "x86_64", reason="what is emulated takes the place of AVX2")
@pytest.mark.parametrize("level", LEVEL_FLAGS)
def test_code_for_other_processors_passes_the_same_tests(level: str, tmp_path: Path) -> None:
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    avx2 = next(level for level in LEVELS if level.name == "avx2")  # whose place it takes
    _compile(SOURCES, compiler, [*FLAGS, *LEVEL_FLAGS[level]], tmp_path / _prebuilt_name(SOURCES, avx2))
    environment = {**os.environ, SWITCH: "avx2", PREBUILT: str(tmp_path)}
    asks = (
        "from workers.native.library import library as l; print(l().phx_skips_zeros(), l().phx_in_matrix_registers())"
    )
    kind = subprocess.run(
        [sys.executable, "-c", asks], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert kind.stdout.strip() == KINDS[level]
    tests = ["-m", "pytest", "-q", str(HERE), "-m", "not slow", "-k", "not avx512 and not amx"]
    result = subprocess.run([sys.executable, *tests], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
