"""What a model is, independent of the file format it came in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]
# How matrices are kept. auto: in the 8 or 4 bits of the file where it has such and the float type is one of 16 bits,
# else as floats.
WeightType = Literal["auto", "dense", "int8", "int4"]
# How keys and values are kept. auto: in the float type; int8: with a scale for each head's key and value of a token.
CacheType = Literal["auto", "int8"]
Family = Literal["llama", "mistral", "qwen2", "qwen3"]

DTYPE_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: the inverse frequency of pair i is `theta ** (-2i / head_dim) / freq_factors[i]`.

    Every supported scaling (none, linear, llama3, GGUF's `rope_freqs`) is a per-frequency factor, computed once
    when the model description is read. `freq_factors` has head_dim / 2 entries, or is empty for no scaling.
    """

    theta: float
    freq_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """The shape and the options of one decoder.

    `layer_windows[i]` is the sliding attention window of layer i in tokens (a query attends to itself and the
    window - 1 tokens before it), 0 for full attention.
    """

    name: str
    family: Family
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope: RopeSpec
    max_position: int
    layer_windows: tuple[int, ...]
    tied_head: bool
    qkv_bias: bool
    qk_norm: bool
    dtype: DType
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads
