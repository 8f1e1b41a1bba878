"""Tiny random checkpoints in Hugging Face's layout, with sizes chosen to be awkward to cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

FAMILIES = ("llama", "llama3", "mistral", "qwen2", "qwen3")

# 9 query heads over 3 KV heads, 307 vocabulary rows and 88 MLP columns: no tensor-parallel degree divides them all.
_SIZES: dict[str, Any] = {
    "vocab_size": 307,
    "hidden_size": 72,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.12,
}

# head_dim 16 where the family has the key, so heads * head_dim (144) differs from hidden_size (72).
_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16, "tie_word_embeddings": False},
    "llama3": {
        "head_dim": 16,
        "tie_word_embeddings": True,
        # Original length 64 puts pairs of this head_dim in all three bands: kept, interpolated, divided.
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"head_dim": 16, "tie_word_embeddings": False, "sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": False},
}


def make_tiny(folder: Path, family: str, *, max_shard_size: str = "1GB", seed: int = 0, **overrides: Any) -> Path:
    """Write a float32 checkpoint of one of FAMILIES into `folder` and return the folder.

    `overrides` are keys of the family's Hugging Face configuration. Norms and biases are random too: at their usual
    start values (ones, zeros) a mistake in applying them would not show.
    """
    model_type = "llama" if family == "llama3" else family
    config = AutoConfig.for_model(model_type, **(_SIZES | _FAMILY[family] | overrides))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(".bias"):
                parameter.normal_(std=0.3)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
