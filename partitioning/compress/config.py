"""The config.json of a smaller checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from partitioning.checkpoint.files import read_json_object
from partitioning.compress.recipe import CompressionError, Quantise, Work
from partitioning.model_spec import ModelSpec

_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_CLASSES |= {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def smaller_config(source: Path, work: Work) -> dict[str, Any]:
    """The keys of `source`'s config.json, or of what a GGUF file says, with the smaller model's sizes and its codes."""
    shape = work.shape
    fields = read_json_object(source / "config.json") if source.is_dir() else _described(source, shape)
    for old in ("quantization_config", "compression_config"):
        fields.pop(old, None)
    fields |= {
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "tie_word_embeddings": shape.tied_head,
    }
    if "layer_types" in fields:
        kinds = {True: "sliding_attention", False: "full_attention"}
        fields["layer_types"] = [kinds[window > 0] for window in shape.layer_windows]
    if shape.family == "llama" and shape.hidden_size % shape.num_heads:
        # transformers refuses such a Llama; a Mistral without a window is the same computation.
        fields |= {"model_type": "mistral", "architectures": [_CLASSES["mistral"]], "sliding_window": None}
    if work.quantise:
        fields["quantization_config"] = _quantisation(work)
    return fields


def _described(source: Path, spec: ModelSpec) -> dict[str, Any]:
    if spec.rope.freq_factors:
        raise CompressionError(
            f"{source}: its rotary factors have no place in config.json; compress the model's Hugging Face folder"
        )
    return {
        "architectures": [_CLASSES[spec.family]],
        "model_type": spec.family,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_position,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "sliding_window": max(spec.layer_windows) or None,
        "dtype": spec.dtype,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": list(spec.eos_token_ids),
    }


def _quantisation(work: Work) -> dict[str, Any]:
    """As compressed-tensors reads it; every rule is a group that lists its matrices."""
    rules: dict[Quantise, list[str]] = {}
    for stem, rule in work.quantise.items():
        rules.setdefault(rule, []).append(stem)
    whole = len(rules) == 1 and len(work.quantise) == 7 * work.shape.num_layers
    groups = {
        f"group_{number}": _group(rule, ["Linear"] if whole else stems)
        for number, (rule, stems) in enumerate(rules.items())
    }
    formats = {group["format"] for group in groups.values()}
    # When a model is opened, compressed-tensors makes room for unpacked zero points, and transformers refuses packed
    # ones; what is expanded while it is read needs no room. Only one group's scheme is used then: several stay refused.
    expanded: dict[str, Any] = {"dequantize": True} if len(rules) == 1 and not next(iter(rules)).symmetric else {}
    return expanded | {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": groups,
    }


def _group(rule: Quantise, targets: list[str]) -> dict[str, Any]:
    scope: dict[str, Any] = {"strategy": "channel"}
    if rule.group_size != "channel":
        scope = {"strategy": "group", "group_size": rule.group_size}
    group: dict[str, Any] = {
        "targets": targets,
        "format": _format(rule),
        "weights": {"num_bits": rule.bits, "type": rule.type, "symmetric": rule.symmetric, **scope},
    }
    if rule.activations == 8:
        group["input_activations"] = {
            "num_bits": 8,
            "type": rule.type,
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    return group


def _format(rule: Quantise) -> str:
    if rule.activations == 8:
        return f"{rule.type}-quantized"
    return "pack-quantized" if rule.type == "int" else "naive-quantized"
