"""What a model is, independent of the file format it came in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]
# How matrices are kept. auto: in the 8 or 4 bits of the file where it has such and the float type is one of 16 bits,
# else as floats.
WeightType = Literal["auto", "dense", "int8", "int4"]
# How keys and values are kept. auto: in the float type; int8: with a scale for each head's key and value of a token.
CacheType = Literal["auto", "int8"]
Family = Literal["llama", "mistral", "qwen2", "qwen3"]

# What a model may be at most. Plans and steps have 32 bits for a number; nothing that is trained comes near the others.
MOST = 2**31 - 1
MOST_LAYERS = 10_000
MOST_HEAD_DIM = 65_536

DTYPE_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: the inverse frequency of pair i is `theta ** (-2i / head_dim) / freq_factors[i]`.

    Every supported scaling (none, linear, llama3, GGUF's `rope_freqs`) is a per-frequency factor, computed once
    when the model description is read. `freq_factors` has head_dim / 2 entries, or is empty for no scaling.
    """

    theta: float
    freq_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for value in (self.theta, *self.freq_factors):
            if not 0 < value < math.inf:
                raise ValueError(f"rotary embedding needs positive, finite numbers, got {value}")


@dataclass(frozen=True)
class ModelSpec:
    """The shape and the options of one decoder.

    `layer_windows[i]` is the sliding attention window of layer i in tokens (a query attends to itself and the
    window - 1 tokens before it), 0 for full attention. `packed_bits`: what a parameter of the layers' quantised
    matrices takes, scales included, where all of them can stay in the bits that the file has them in, else 0;
    `gpu_packed_bits`: the same on GPUs, which have kernels for 8-bit floats, too; `notes` are what a plan should say of
    the checkpoint.

    Raises ValueError for sizes that no model has.
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
    packed_bits: float = 0
    gpu_packed_bits: float = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for size in ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "vocab_size", "max_position"):
            _check(size, getattr(self, size), 1, MOST)
        _check("num_layers", self.num_layers, 1, MOST_LAYERS)
        _check("head_dim", self.head_dim, 2, MOST_HEAD_DIM)
        for token in (self.bos_token_id or 0, *self.eos_token_ids):
            _check("a token id", token, 0, MOST)
        for window in self.layer_windows:
            _check("a sliding window", window, 0, MOST)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} query heads are not a multiple of {self.num_kv_heads} KV heads")
        if self.head_dim % 2:
            raise ValueError(f"the head size {self.head_dim} is odd; rotary embedding works on pairs")
        if len(self.rope.freq_factors) not in (0, self.head_dim // 2):
            raise ValueError(f"{len(self.rope.freq_factors)} rotary factors do not fit a head size of {self.head_dim}")
        if len(self.layer_windows) != self.num_layers:
            raise ValueError(f"{len(self.layer_windows)} sliding windows do not fit {self.num_layers} layers")
        if not 0 < self.norm_eps < math.inf:
            raise ValueError(f"the epsilon of the norms has to be positive and finite, got {self.norm_eps}")

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads


def _check(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{what} has to be from {least} to {most}, got {value}")
