"""What a deployment asks of its replicas, and the request that plans are made for."""

from __future__ import annotations

from dataclasses import dataclass

from partitioning.costs import CacheBytes, Load, ParameterBytes, cache_bytes, parameter_bytes
from partitioning.draft import Draft
from partitioning.model_spec import CacheType, DType, ModelSpec, WeightType
from partitioning.plan import PlanError
from partitioning.topology import DeviceKind

# The request that layouts are balanced and compared for.
PROMPT_TOKENS = 1024
NEW_TOKENS = 256

_DEFAULT_MODEL_LEN = 8192

DECODE = Load(tokens=1, sampled=1, sequences=1, context=PROMPT_TOKENS)


@dataclass(frozen=True)
class PlanSettings:
    """What a deployment asks of its replicas. `kv_cache_tokens` of None leaves the size of the cache to the planner;
    `memory_fraction` is the part of a device's memory that may be used, `draft` what rank 0 holds beside its slice."""

    dtype: DType
    max_model_len: int
    max_batch_tokens: int
    kv_block_size: int = 16
    kv_cache_tokens: int | None = None
    memory_fraction: float = 0.9
    weights: WeightType = "auto"
    kv_cache: CacheType = "auto"
    packed_bits: float = 0
    gpu_packed_bits: float = 0
    draft: Draft | None = None

    @property
    def needed_tokens(self) -> int:
        """Tokens of KV cache a replica cannot do without: those asked for, or one sequence of the greatest length."""
        return self.max_model_len if self.kv_cache_tokens is None else self.kv_cache_tokens

    def stored(self, kind: DeviceKind) -> ParameterBytes:
        """On a device of this kind."""
        packed_bits = self.gpu_packed_bits if kind == "cuda" else self.packed_bits
        return parameter_bytes(self.dtype, self.weights, packed_bits)

    @property
    def cached(self) -> CacheBytes:
        return cache_bytes(self.dtype, self.kv_cache)

    @property
    def prefill(self) -> Load:
        """A chunk of the standard prompt, at the middle of it."""
        tokens = min(self.max_batch_tokens, PROMPT_TOKENS)
        return Load(tokens=tokens, sampled=0, sequences=1, context=PROMPT_TOKENS // 2)


def plan_settings(
    model: ModelSpec,
    *,
    dtype: DType | None = None,
    max_model_len: int | None = None,
    max_batch_tokens: int = 512,
    kv_block_size: int = 16,
    kv_cache_tokens: int | None = None,
    memory_fraction: float = 0.9,
    weights: WeightType = "auto",
    kv_cache: CacheType = "auto",
    draft: Draft | None = None,
) -> PlanSettings:
    """Settings with the model's own dtype and (up to 8192 tokens) length where none is given.

    Raises:
        PlanError: a figure out of range.
    """
    length = min(model.max_position, _DEFAULT_MODEL_LEN) if max_model_len is None else max_model_len
    if not 1 <= length <= model.max_position:
        raise PlanError(f"max_model_len {length} must be from 1 to the model's {model.max_position} positions")
    for name, value in [
        ("max_batch_tokens", max_batch_tokens),
        ("kv_block_size", kv_block_size),
        ("kv_cache_tokens", 1 if kv_cache_tokens is None else kv_cache_tokens),
    ]:
        if value < 1:
            raise PlanError(f"{name} must be at least 1, got {value}")
    if not 0 < memory_fraction <= 1:
        raise PlanError(f"memory_fraction must be above 0 and at most 1, got {memory_fraction}")
    return PlanSettings(
        dtype or model.dtype,
        length,
        max_batch_tokens,
        kv_block_size,
        kv_cache_tokens,
        memory_fraction,
        weights,
        kv_cache,
        model.packed_bits,
        model.gpu_packed_bits,
        draft,
    )
