"""Which tensors a model is made of, and whether a checkpoint holds exactly those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from partitioning.checkpoint.base import CheckpointError, StoredTensor
from partitioning.model_spec import ModelSpec

# A buffer that older versions of transformers saved; it follows from the configuration.
_HARMLESS = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class Part:
    """What a stored tensor has to be: one of these types, of this shape."""

    shape: tuple[int, ...]
    types: frozenset[str]


def model_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name (Hugging Face's) and shape of every tensor of the model. Weights are [outputs, inputs]."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    query, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not spec.tied_head:
        tensors["lm_head.weight"] = (spec.vocab_size, hidden)
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (query, hidden),
            prefix + "self_attn.k_proj.weight": (keys, hidden),
            prefix + "self_attn.v_proj.weight": (keys, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, query),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
        if spec.qkv_bias:
            tensors |= {
                prefix + "self_attn.q_proj.bias": (query,),
                prefix + "self_attn.k_proj.bias": (keys,),
                prefix + "self_attn.v_proj.bias": (keys,),
            }
        if spec.qk_norm:
            tensors |= {
                prefix + "self_attn.q_norm.weight": (spec.head_dim,),
                prefix + "self_attn.k_norm.weight": (spec.head_dim,),
            }
    return tensors


def check_tensors(
    source: str,
    spec: ModelSpec,
    expected: Mapping[str, Part],
    stored: Mapping[str, StoredTensor],
    file_sizes: Mapping[str, int],
) -> None:
    """Raise CheckpointError unless `stored` is the whole model and nothing but the model: all that is `expected`.

    `file_sizes` are the real sizes in bytes of the files that `stored` points into.
    """
    for name, part in expected.items():
        tensor = stored.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{source}: tensor {name} is missing; the checkpoint is incomplete, or its configuration describes "
                "another model. Fetch it again"
            )
        if tensor.shape != part.shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, but the configuration asks for "
                f"{list(part.shape)}; weights and configuration belong to different models"
            )
        if tensor.type not in part.types:
            raise CheckpointError(
                f"{tensor.file}: tensor {name} has type {tensor.type}, which is not supported; convert it to one of "
                f"{', '.join(sorted(part.types))}"
            )
        if tensor.end > file_sizes[tensor.file]:
            raise CheckpointError(
                f"{tensor.file} is truncated: tensor {name} ends at byte {tensor.end}, the file at "
                f"{file_sizes[tensor.file]}. Fetch the file again"
            )
    _check_overlaps(stored)
    surplus = sorted(name for name in stored.keys() - expected.keys() if not name.endswith(_HARMLESS))
    if surplus:
        more = f" and {len(surplus) - 1} more" if len(surplus) > 1 else ""
        raise CheckpointError(
            f"{stored[surplus[0]].file}: tensor {surplus[0]}{more} has no place in a {spec.family} model of "
            f"{spec.num_layers} layers; ignoring it would change the output. Use a checkpoint of a supported model"
        )


def _check_overlaps(stored: Mapping[str, StoredTensor]) -> None:
    last = StoredTensor("", "", (), 0, 0)
    for name, tensor in sorted(stored.items(), key=lambda item: (item[1].file, item[1].begin, item[1].end)):
        if tensor.file == last.file and tensor.begin < last.end:
            raise CheckpointError(f"{tensor.file}: tensor {name} overlaps the one before it; fetch the file again")
        last = tensor
