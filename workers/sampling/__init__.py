"""Exact sampling over vocabulary shards, without ever gathering full logits."""

from workers.sampling.sampled import NOTHING_SAMPLED, Drawn, Sampled
from workers.sampling.sampler import Sampler

__all__ = ["NOTHING_SAMPLED", "Drawn", "Sampled", "Sampler"]
