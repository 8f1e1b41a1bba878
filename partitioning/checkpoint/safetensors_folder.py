"""Hugging Face folders: config.json beside one or several safetensors files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from partitioning.checkpoint.base import Checkpoint, CheckpointError, StoredTensor, slice_bounds
from partitioning.checkpoint.hf_config import read_hf_config, read_json_object
from partitioning.checkpoint.tensors import check_tensors
from partitioning.model_spec import DType
from partitioning.plan import Span

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_TYPES: dict[str, DType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_TYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2}


class SafetensorsFolder(Checkpoint):
    """The weights of a Hugging Face folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Read the descriptions and check them against the files. Raises CheckpointError."""
        self._stored: dict[str, StoredTensor] = {}
        file_sizes: dict[str, int] = {}
        for path in _weight_files(folder):
            self._stored |= _read_header(path)
            file_sizes[str(path)] = path.stat().st_size
        embedding = self._stored.get("model.embed_tokens.weight")
        spec = read_hf_config(
            folder,
            has_own_head="lm_head.weight" in self._stored,
            stored_dtype=_TYPES.get(embedding.type, "float32") if embedding else "float32",
        )
        check_tensors(str(folder), spec, self._stored, frozenset(_TYPES), file_sizes)
        super().__init__(spec)

    def read(self, name: str, rows: Span | None = None, cols: Span | None = None) -> torch.Tensor:
        tensor = self._stored.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.spec.name} has no tensor {name}")
        rows, cols = slice_bounds(name, tensor.shape, rows, cols)
        size = _TYPE_BYTES[tensor.type]
        table = tensor.mapped().reshape(tensor.shape[0], -1)
        wanted = slice(None) if cols is None else slice(cols.start * size, cols.stop * size)
        part = np.array(table[rows.start : rows.stop, wanted], order="C")
        self.bytes_read += part.size
        values = torch.from_numpy(part.reshape(-1)).view(getattr(torch, _TYPES[tensor.type]))
        return values if cols is None else values.view(len(rows), len(cols))

    def close(self) -> None:
        pass  # nothing stays open between reads


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, from its index where there is one."""
    if not (folder / INDEX_NAME).exists():
        return [folder / SINGLE_NAME]
    index = folder / INDEX_NAME
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names; fetch the file again")
    files = []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name}, which is no file of this folder; fetch the index again")
        file = folder / name
        files.append(file)
        if not file.exists():
            raise CheckpointError(f"{file} is missing, though {INDEX_NAME} names it; fetch the checkpoint again")
    return files


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file: a little-endian u64 length, that many bytes of JSON, then the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise CheckpointError(f"{path} is truncated or not a safetensors file; fetch it again")
        raw = file.read(length)
    data_start = 8 + length
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        stored = {
            name: StoredTensor(
                file=str(path),
                type=entry["dtype"],
                shape=tuple(entry["shape"]),
                begin=data_start + entry["data_offsets"][0],
                end=data_start + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: the safetensors header is damaged; fetch the file again") from error
    for name, tensor in stored.items():
        size = _TYPE_BYTES.get(tensor.type)
        if size is not None and tensor.end - tensor.begin != size * math.prod(tensor.shape):
            raise CheckpointError(f"{path}: the size of tensor {name} contradicts its shape; fetch the file again")
    return stored
