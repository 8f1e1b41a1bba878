"""Exact sampling over vocabulary shards, without ever gathering full logits."""

from workers.sampling.sampler import NOTHING_SAMPLED, Sampled, Sampler

__all__ = ["NOTHING_SAMPLED", "Sampled", "Sampler"]
