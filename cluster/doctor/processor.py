"""What can the processor compute with, and is there the native engine for it?"""

from __future__ import annotations

import os
import platform

from cluster.doctor.finding import Finding, failed, ok, warning
from workers.native.build import PREBUILT, SWITCH, BuildError, build, choose_level, processor_flags, switched_off

_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


def processor() -> Finding:
    """The instruction sets."""
    flags = processor_flags()
    known = ", ".join(name for name in _SETS if name in flags) or "none of AVX2, AVX-512, AMX"
    text = f"{platform.machine()}: {known}"
    try:
        level = choose_level(platform.machine(), flags)
    except BuildError as error:
        return warning(
            "processor", f"{text}; {error}", "ranks here compute in torch, several times slower: leave it out"
        )
    return ok("processor", f"{text}; kernels for {level.name}")


def native_engine() -> Finding:
    """Compiles it, a minute long, unless it is there."""
    if switched_off():
        return warning(
            "native engine", f"{SWITCH}=off: ranks compute in torch, several times slower", f"unset {SWITCH}"
        )
    try:
        path = build()
    except BuildError as error:
        remedy = f"install a compiler (apt-get install g++), or set {PREBUILT}; without, ranks compute in torch, slower"
        return warning("native engine", str(error).splitlines()[0], remedy)
    except ValueError as error:
        return failed("native engine", str(error), f"{SWITCH}={os.environ[SWITCH]} does not fit this node: unset it")
    return ok("native engine", f"compiled: {path}")
