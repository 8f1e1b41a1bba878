"""Rotary scaling, turned into one factor per frequency."""

from __future__ import annotations

import math


def linear_factors(head_dim: int, factor: float) -> tuple[float, ...]:
    """Position interpolation: every frequency is divided by `factor`. [head_dim / 2]"""
    return (factor,) * (head_dim // 2)


def llama3_factors(
    head_dim: int, theta: float, factor: float, low_freq_factor: float, high_freq_factor: float, original_length: int
) -> tuple[float, ...]:
    """Llama 3.1's scaling: waves much shorter than the original context stay, waves longer than it are slowed by
    `factor`, and those between are blended. [head_dim / 2]

    The bands follow `apply_scaling` of Meta's llama-models, which transformers calls rope type "llama3".
    """
    factors = []
    for pair in range(head_dim // 2):
        wave_length = 2 * math.pi * theta ** (2 * pair / head_dim)
        if wave_length < original_length / high_freq_factor:
            factors.append(1.0)
        elif wave_length > original_length / low_freq_factor:
            factors.append(factor)
        else:
            keep = (original_length / wave_length - low_freq_factor) / (high_freq_factor - low_freq_factor)
            factors.append(1.0 / ((1.0 - keep) / factor + keep))
    return tuple(factors)
