"""GGUF metadata read into a ModelSpec, and the names of its tensors translated to Hugging Face's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import TypeVar

from partitioning.checkpoint.base import CheckpointError, StoredTensor
from partitioning.checkpoint.gguf_header import GgufHeader, Scalar
from partitioning.checkpoint.rope import linear_factors
from partitioning.model_spec import MOST_HEAD_DIM, DType, Family, ModelSpec, RopeSpec

# Mistral and SmolLM models carry the architecture "llama" in GGUF files.
_ARCHITECTURES: dict[str, Family] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

_EOS_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"


def hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; a name that has no counterpart stays as it is."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        if part in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
    return _GLOBAL_NAMES.get(name, name)


def read_gguf_spec(path: Path, header: GgufHeader, rope_factors: tuple[float, ...]) -> ModelSpec:
    """The ModelSpec that a GGUF file describes. `rope_factors` are the values of its tensor ROPE_FACTORS, if any.

    Raises CheckpointError naming the file and the key for what is missing, malformed or not supported.
    """
    architecture = header.metadata.get("general.architecture")
    family = _ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        raise CheckpointError(
            f"{path}: architecture {shortened(architecture)} is not supported; Phalanx runs GGUF files of "
            f"{', '.join(_ARCHITECTURES)}"
        )
    keys = _Keys(path, f"{architecture}.", header.metadata)
    keys.refuse_unsupported()
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    kv_heads = keys.size("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise CheckpointError(f"{path}: {heads} query heads are not a multiple of {kv_heads} KV heads")
    head_dim = keys.size("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.size(key, head_dim) != head_dim:
            raise CheckpointError(f"{path}: {keys.prefix}{key} differs from the head size {head_dim}; not supported")
    if head_dim > MOST_HEAD_DIM:
        raise CheckpointError(f"{path}: a head size of {head_dim} is not supported, only up to {MOST_HEAD_DIM}")
    if head_dim % 2:
        raise CheckpointError(f"{path}: the head size {head_dim} is odd; rotary embedding works on pairs")
    layers = keys.size("block_count")
    if layers > len(header.tensors):
        raise CheckpointError(f"{path} describes {layers} layers with {len(header.tensors)} tensors; fetch it again")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{path}: tensor token_embd.weight is missing; fetch the file again")
    window = keys.value("attention.sliding_window", int, 0)
    return ModelSpec(
        name=path.stem,
        family=family,
        hidden_size=hidden,
        intermediate_size=keys.size("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=embedding.shape[0],
        norm_eps=keys.value("attention.layer_norm_rms_epsilon", float),
        rope=RopeSpec(keys.value("rope.freq_base", float, 10000.0), keys.rope_factors(head_dim, rope_factors)),
        max_position=keys.size("context_length"),
        layer_windows=(window,) * layers,
        tied_head="output.weight" not in header.tensors,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        dtype=_dtype(header.tensors),
        bos_token_id=keys.token_id("tokenizer.ggml.bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(i for key in _EOS_KEYS if (i := keys.token_id(key)) is not None)),
    )


def _dtype(tensors: Mapping[str, StoredTensor]) -> DType:
    """The type of a file whose matrices are all of one float type, otherwise bfloat16: dequantised weights need no
    more digits than that."""
    kinds = {tensor.type for tensor in tensors.values() if len(tensor.shape) == 2}
    if kinds == {"F32"}:
        return "float32"
    return "float16" if kinds == {"F16"} else "bfloat16"


_T = TypeVar("_T", int, float, str)


class _Keys:
    """Typed access to the metadata, whose architecture keys begin with `prefix`."""

    def __init__(self, path: Path, prefix: str, metadata: Mapping[str, Scalar | list[Scalar]]) -> None:
        self.path = path
        self.prefix = prefix
        self.metadata = metadata

    def value(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        value = self.metadata.get(self.prefix + key, default)
        if value is None:
            raise CheckpointError(f"{self.path}: {self.prefix}{key} is missing; fetch the file again")
        if type(value) is not kind:
            raise CheckpointError(
                f"{self.path}: {self.prefix}{key} {shortened(value)} is not supported; expected one {kind.__name__}"
            )
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive number. A list of equal numbers, one a layer, counts as the number."""
        value = self.metadata.get(self.prefix + key)
        if isinstance(value, list) and len(set(value)) == 1 and type(value[0]) is int:
            size: int = value[0]
        else:
            size = self.value(key, int, default)
        if size <= 0:
            raise CheckpointError(f"{self.path}: {self.prefix}{key} {size} is not positive; fetch the file again")
        return size

    def token_id(self, key: str) -> int | None:
        value = self.metadata.get(key)
        if value is not None and type(value) is not int:
            raise CheckpointError(f"{self.path}: {key} {shortened(value)} is not a token id; fetch the file again")
        return value

    def refuse_unsupported(self) -> None:
        if self.metadata.get("split.count", 0) not in (0, 1):
            raise CheckpointError(f"{self.path} is one of several parts; join them with llama-gguf-split --merge")
        for key in ("expert_count", "attention.sliding_window_pattern", "rope.scale_linear"):
            if self.metadata.get(self.prefix + key):
                raise CheckpointError(f"{self.path}: {self.prefix}{key} is set, which is not supported")

    def rope_factors(self, head_dim: int, stored: tuple[float, ...]) -> tuple[float, ...]:
        """The file's own factors times its linear scaling. [head_dim / 2], or empty for no scaling."""
        if stored and len(stored) != head_dim // 2:
            raise CheckpointError(f"{self.path}: {ROPE_FACTORS} has {len(stored)} values for a head size of {head_dim}")
        kind = self.value("rope.scaling.type", str, "none")
        if kind == "none":
            return stored
        if kind != "linear":
            raise CheckpointError(f"{self.path}: rope.scaling.type {shortened(kind)} is not supported, none and linear")
        linear = linear_factors(head_dim, self.value("rope.scaling.factor", float))
        return tuple(a * b for a, b in zip(stored, linear, strict=True)) if stored else linear
