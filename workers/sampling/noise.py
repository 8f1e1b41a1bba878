"""The random draw: Gumbel noise that is a hash of (seed, position, token id).

Adding Gumbel noise to the logits and taking the arg-max draws from their softmax (the Gumbel-max trick; Maddison et
al., "A* Sampling", 2014). As each token's noise depends on nothing but the request's seed, the position and the token,
the draw is the same on every rank, in every batch and layout, and needs no agreement between shards beyond the
arg-max. Rounding differences in the logits change a draw only when the two best are that close.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_A, _B = 0x7FEB352D, -2073319803  # 0x846CA68B as int32; multipliers of C. Wellons' "lowbias32" hash
_FULL = 1.0 / 2**31


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


def token_keys(ids: Tensor) -> Tensor:
    """A well-mixed int32 for each token id, the half of the hash that does not change from step to step."""
    x = ids.to(torch.int32) + 0x3C6EF372
    x = (x ^ _shift(x, 16)) * _A
    x = (x ^ _shift(x, 15)) * _B
    return x ^ _shift(x, 16)


def gumbel(keys: Tensor, rows: Tensor) -> Tensor:
    """Standard Gumbel noise, float32 [rows, n], for token keys [n] or [rows, n] and row keys [rows, 2]."""
    x = keys ^ rows[:, :1]
    x ^= _shift(x, 16)
    x *= _A
    x += rows[:, 1:]
    x ^= _shift(x, 15)
    x *= _B
    x ^= _shift(x, 16)
    x &= 0x7FFFFFFF
    # Small u is what wins, and is where a float has its precision: -log(-log(1 - u)).
    u = x.float().add_(0.5).mul_(_FULL).clamp_(max=1 - 2**-24)
    return u.neg_().log1p_().neg_().log_().neg_()


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift right; torch's shift of an int32 copies the sign."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)
