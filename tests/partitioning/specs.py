"""Model shapes for planning; no weights are needed to plan."""

from __future__ import annotations

from partitioning.model_spec import ModelSpec, RopeSpec


def model_spec(
    *,
    layers: int = 30,
    heads: int = 9,
    kv_heads: int = 3,
    head_dim: int = 64,
    hidden: int = 576,
    intermediate: int = 1536,
    vocab: int = 49152,
    tied: bool = True,
    family: str = "llama",
    max_position: int = 8192,
) -> ModelSpec:
    """SmolLM2-135M, unless said otherwise."""
    return ModelSpec(
        name="model",
        family="qwen2" if family == "qwen2" else "qwen3" if family == "qwen3" else "llama",
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        norm_eps=1e-5,
        rope=RopeSpec(1e4),
        max_position=max_position,
        layer_windows=(0,) * layers,
        tied_head=tied,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        dtype="bfloat16",
        bos_token_id=1,
        eos_token_ids=(2,),
    )


LLAMA_70B = model_spec(
    layers=80,
    heads=64,
    kv_heads=8,
    head_dim=128,
    hidden=8192,
    intermediate=28672,
    vocab=128256,
    tied=False,
    max_position=131072,
)
LLAMA_405B = model_spec(
    layers=126,
    heads=128,
    kv_heads=8,
    head_dim=128,
    hidden=16384,
    intermediate=53248,
    vocab=128256,
    tied=False,
    max_position=131072,
)
