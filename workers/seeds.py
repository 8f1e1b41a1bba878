"""What the random draws of a request depend on. Needs no torch: the gateway derives seeds too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def row_keys(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Two 32-bit keys for each (seed, position), [rows, 2], by splitmix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = seeds + np.uint64(0x9E3779B97F4A7C15) * (positions.astype(np.uint64) + np.uint64(1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    keys: npt.NDArray[np.int32] = z.view(np.int32).reshape(-1, 2)
    return keys


def derived_seed(seed: int, output: int) -> int:
    """The seed of one of several outputs of a request: the request's own for the first, unrelated ones after it."""
    if output == 0:
        return seed
    return int(row_keys(np.array([seed], dtype=np.uint64), np.array([-output])).view(np.uint64)[0, 0])
