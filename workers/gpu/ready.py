"""Can Triton's kernels run here?"""

from __future__ import annotations

REMEDY = "pip install triton, and a C compiler with Python's headers: apt install gcc python3-dev"


def missing() -> str | None:
    """Why kernels cannot be launched on this machine's GPUs, None where they can. Triton's driver compiles what it
    launches with when it is first used."""
    try:
        import triton

        triton.runtime.driver.active  # noqa: B018
    except Exception as error:  # whatever a compiler, a linker or CUDA have to say
        return f"{type(error).__name__}: {error}"
    return None
