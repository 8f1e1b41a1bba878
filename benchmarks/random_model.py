"""Models of well-known shapes whose weights are random numbers: they take as long as a trained model's, and nothing has
to be fetched or written."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from partitioning.checkpoint.base import Checkpoint, slice_bounds
from partitioning.checkpoint.hf_config import read_hf_config
from partitioning.checkpoint.tensors import model_tensors
from partitioning.model_spec import ModelSpec
from partitioning.plan import Span
from partitioning.quantised import GROUP, Channels, Codes, FloatCodes, Quantised
from partitioning.topology import DeviceKind

Kept = Literal["bf16", "int8", "int4", "w8a8", "fp8"]

# A parameter of the layers takes so many bits: scales of 16 bits for each group of 32, or of 32 for an output.
BITS: dict[Kept, float] = {"bf16": 16, "int8": 8 + 16 / GROUP, "int4": 4 + 16 / GROUP, "w8a8": 8, "fp8": 8}

_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
    "tiny": _LLAMA
    | {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
    },
}

_NUMBERS = 1_000_003  # a prime, so that rows of a matrix differ
_LARGEST_FLOAT = 0x7E  # of E4M3


def spec_of(shape: str, kept: Kept) -> ModelSpec:
    """What a checkpoint of the shape would say of itself."""

    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(SHAPES[shape]), encoding="utf-8")
        spec = read_hf_config(Path(folder), has_own_head=True, stored_dtype="bfloat16")
    bits = 0.0 if kept == "bf16" else BITS[kept]
    return replace(spec, name=shape, packed_bits=0.0 if kept == "fp8" else bits, gpu_packed_bits=bits)


class RandomCheckpoint(Checkpoint):
    """The layers' matrices as `kept`, everything else in bfloat16; norms are ones."""

    def __init__(self, spec: ModelSpec, kept: Kept) -> None:
        super().__init__(spec)
        generator = torch.Generator().manual_seed(1)
        self._shapes = model_tensors(spec)
        self._kept = kept
        self._floats = torch.randn(_NUMBERS, generator=generator).mul(0.02).bfloat16()
        self._bytes = torch.randint(0, 256, (_NUMBERS,), dtype=torch.uint8, generator=generator)

    @property
    def bytes_read(self) -> int:
        return 0

    def read(self, name: str, rows: Span | None = None, cols: Span | None = None) -> Tensor:
        rows, cols = slice_bounds(name, self._shapes[name], rows, cols)
        if cols is None:
            return torch.ones(len(rows), dtype=torch.bfloat16)
        return _repeated(self._floats, len(rows), len(cols))

    def read_quantised(
        self, name: str, rows: Span | None = None, cols: Span | None = None, kind: DeviceKind = "cpu"
    ) -> Codes | None:
        if self._kept == "bf16" or ".layers." not in name or (self._kept == "fp8" and kind == "cpu"):
            return None
        rows, cols = slice_bounds(name, self._shapes[name], rows, cols)
        assert cols is not None
        codes = _repeated(self._bytes, len(rows), len(cols))
        if self._kept == "w8a8":
            return Channels(codes, torch.full((len(rows),), 3e-4))
        if self._kept == "fp8":
            return FloatCodes(codes % (_LARGEST_FLOAT + 1), torch.full((len(rows), 1), 1e-3))
        scales = torch.full((len(rows), -(-len(cols) // GROUP)), 5e-4, dtype=torch.float16)
        return Quantised(8, codes, scales, None) if self._kept == "int8" else Quantised(4, codes & 15, scales, None)

    def close(self) -> None:
        pass


def _repeated(numbers: Tensor, *shape: int) -> Tensor:
    count = prod(shape)
    return numbers.repeat(-(-count // len(numbers)))[:count].view(shape)
