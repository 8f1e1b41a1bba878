"""The least that a model's tokens cost: bytes read and operations, whoever computes them."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFReader

from partitioning.checkpoint import open_checkpoint
from partitioning.costs import Slice, layer_parameters, parameter_bytes
from partitioning.model_spec import ModelSpec


def decode_bytes(path: Path) -> int:
    """Bytes of weights that one token at batch 1 reads: all layers and the head; of the embedding only a row.

    A Hugging Face folder counts as 16-bit floats, or as 8 bits where it holds 8-bit codes, a GGUF file (of a
    model with a tied head) as what it stores.
    """
    if path.suffix == ".gguf":
        return sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
    model = model_of(path)
    stored = parameter_bytes("bfloat16", "int8" if model.packed_bits >= 8 else "dense", model.packed_bits)
    return round(read_bytes(model, stored.layer, stored.table))


def read_bytes(model: ModelSpec, layer: float, table: float) -> float:
    """The same, where a parameter of the layers takes `layer` bytes and one of the head `table`."""
    layers = model.num_layers * layer_parameters(model, Slice.whole(model))
    return layers * layer + model.vocab_size * model.hidden_size * table


def prefill_operations(model: ModelSpec, tokens: int) -> int:
    """Operations to read a prompt of `tokens` tokens: two for every weight of the layers and token, four for every
    element of a query head and token it attends to, and the head once, for the last token."""
    layers = 2 * model.num_layers * layer_parameters(model, Slice.whole(model)) * tokens
    attended = tokens * (tokens + 1) // 2
    attention = 4 * model.num_layers * model.num_heads * model.head_dim * attended
    return layers + attention + 2 * model.vocab_size * model.hidden_size


def model_of(path: Path) -> ModelSpec:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.spec
