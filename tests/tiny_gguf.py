"""GGUF files made from Hugging Face folders, in the way llama.cpp's converter does it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


def make_tiny_gguf(
    path: Path,
    folder: Path,
    *,
    kind: str = "F32",
    rope_factors: tuple[float, ...] = (),
    metadata: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> Path:
    """Write the one-file checkpoint in `folder` as GGUF, its matrices in `kind` where their rows are whole blocks.

    The gguf package cannot quantise to the K types: their blocks are random bytes. `metadata` is added
    as it is, in place of what the folder says.
    """
    config = json.loads((folder / "config.json").read_text())
    arch = _ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_token_list([f"<{i}>" for i in range(config["vocab_size"])])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)

    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.float().numpy()
        if arch == gguf.MODEL_ARCH.LLAMA and ("q_proj" in name or "k_proj" in name):
            values = _interleaved(values, head_dim)
        _add_tensor(writer, names.get_name(name, (".weight", ".bias")), values, kind)
    if rope_factors:
        writer.add_tensor("rope_freqs.weight", np.array(rope_factors, np.float32))
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tokenizer_gguf(path: Path, tokens: list[str], scores: Mapping[str, float], model: str = "llama") -> Path:
    """Write a GGUF file that has a SentencePiece vocabulary and nothing else: <unk>, <s>, </s>, bytes and pieces."""
    kinds = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": gguf.TokenType.CONTROL, "</s>": gguf.TokenType.CONTROL}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_scores([scores.get(token, 0.0) for token in tokens])
    writer.add_token_types(
        [
            kinds.get(token, gguf.TokenType.BYTE if token.startswith("<0x") else gguf.TokenType.NORMAL)
            for token in tokens
        ]
    )
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: npt.NDArray[np.float32], kind: str) -> None:
    quantization = gguf.GGMLQuantizationType[kind]
    if values.ndim == 1 or values.shape[1] % gguf.GGML_QUANT_SIZES[quantization][0]:
        quantization = gguf.GGMLQuantizationType.F32
    if quantization.name.endswith("_K"):
        shape = gguf.quant_shape_to_byte_shape(values.shape, quantization)
        blocks = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    else:
        blocks = gguf.quantize(values, quantization)
    writer.add_tensor(name, blocks, raw_dtype=quantization)


def _interleaved(weight: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """The halves of each head's rows taken in turn, as llama.cpp's rotary kernel wants them."""
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])  # [heads, half, pair, inputs]
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
