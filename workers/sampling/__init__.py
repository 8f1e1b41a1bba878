"""Exact sampling over vocabulary shards, without ever gathering full logits."""

from workers.sampling.sampler import Sampled, Sampler

__all__ = ["Sampled", "Sampler"]
