"""How tokens are drawn, one row each, in the form that the native library reads: see csrc/draw.h."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Draws = npt.NDArray[np.void]

# Temperature 0: the likeliest. top_k 0, top_p 1 and min_p 0 are off.
DRAW = np.dtype(
    [
        ("seed", "<u8"),
        ("position", "<i8"),
        ("temperature", "<f4"),
        ("top_k", "<i4"),
        ("top_p", "<f4"),
        ("min_p", "<f4"),
    ]
)


def filtering(draws: Draws) -> npt.NDArray[np.bool_]:
    """[rows]: whose tokens are drawn from some of the vocabulary."""
    filters: npt.NDArray[np.bool_] = (draws["top_k"] > 0) | (draws["top_p"] < 1) | (draws["min_p"] > 0)
    return filters & (draws["temperature"] > 0)
