"""The random draw: Gumbel noise that is a hash of (seed, position, token id); see `workers.seeds` for the first two.

Adding Gumbel noise to the logits and taking the arg-max draws from their softmax (the Gumbel-max trick; Maddison et
al., "A* Sampling", 2014). As each token's noise depends on nothing but the request's seed, the position and the token,
the draw is the same on every rank, in every batch and layout, and needs no agreement between shards beyond the
arg-max. Rounding differences in the logits change a draw only when the two best are that close.
"""

from __future__ import annotations

import torch
from torch import Tensor

# After C. Wellons' "lowbias32" hash, whose second multiplier is 0x846CA68B; to take that would change all seeds' draws.
_A, _B = 0x7FEB352D, 0x846BA685 - (1 << 32)
_FULL = 1.0 / 2**31


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
