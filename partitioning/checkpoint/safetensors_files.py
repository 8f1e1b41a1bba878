"""Safetensors files: what tensors they hold, and slices of their bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from partitioning.checkpoint.base import CheckpointError, StoredTensor, slice_bounds
from partitioning.checkpoint.files import MOST_JSON_BYTES, file_size, json_object, read_json_object
from partitioning.plan import Span

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# The format's names of types, torch's, and their bytes.
TYPES = {
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
}

_Number = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


@dataclass(frozen=True)
class _Entry:
    """A tensor in the header of a file; offsets count from the end of the header."""

    dtype: str
    shape: Annotated[list[_Number], Field(max_length=16)]
    data_offsets: Annotated[list[_Number], Field(min_length=2, max_length=2)]


_ENTRIES = TypeAdapter(dict[str, _Entry])


class SafetensorsFiles:
    """The tensors of several files, by name, memory-mapped. `bytes_read` counts the bytes of the slices read so far."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Reads the headers. Raises CheckpointError."""
        self.stored: dict[str, StoredTensor] = {}
        self.sizes: dict[str, int] = {}
        self.bytes_read = 0
        for path in files:
            self.sizes[str(path)] = size = file_size(path)
            header = _read_header(path, size)
            if twice := self.stored.keys() & header.keys():
                raise CheckpointError(f"{path}: tensor {min(twice)} is in two files; fetch the checkpoint again")
            self.stored |= header

    def read(self, name: str, rows: Span | None = None, cols: Span | None = None) -> torch.Tensor:
        """[rows, cols] of a matrix, or [rows] of a vector, in the file's type.

        Raises CheckpointError for a span outside the tensor, KeyError for a name that there is not."""
        import torch  # not to describe a model

        tensor = self.stored[name]
        kind, size = TYPES[tensor.type]
        rows, cols = slice_bounds(name, tensor.shape, rows, cols)
        table: npt.NDArray[np.uint8] = tensor.mapped().reshape(tensor.shape[0], -1)
        wanted = slice(None) if cols is None else slice(cols.start * size, cols.stop * size)
        part = np.array(table[rows.start : rows.stop, wanted], order="C")
        self.bytes_read += part.size
        values = torch.from_numpy(part.reshape(-1)).view(getattr(torch, kind))
        return values if cols is None else values.view(len(rows), len(cols))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, from its index where there is one. Raises CheckpointError."""
    if not (folder / INDEX_NAME).exists():
        return [folder / SINGLE_NAME]
    index = folder / INDEX_NAME
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names; fetch the file again")
    files = []
    for name in sorted(set(weight_map.values())):
        # "" and ".." would name folders.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name}, which is no file of this folder; fetch the index again")
        file = folder / name
        files.append(file)
        try:
            missing = not file.exists()
        except OSError:  # no file system has a name that long
            missing = True
        if missing:
            raise CheckpointError(f"{file} is missing, though {INDEX_NAME} names it; fetch the checkpoint again")
    return files


def _read_header(path: Path, size: int) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file: a little-endian u64 length, that many bytes of JSON, then the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise CheckpointError(f"{path} is truncated or not a safetensors file; fetch it again")
        if length > MOST_JSON_BYTES:
            raise CheckpointError(f"{path}: a header of {length} bytes is not supported, only up to {MOST_JSON_BYTES}")
        raw = file.read(length)
    data_start = 8 + length
    try:
        header = json_object(path, raw)
        header.pop("__metadata__", None)
        entries = _ENTRIES.validate_python(header)
    except (CheckpointError, ValidationError) as error:
        raise CheckpointError(f"{path}: the safetensors header is damaged; fetch the file again") from error
    stored = {
        name: StoredTensor(
            file=str(path),
            type=entry.dtype,
            shape=tuple(entry.shape),
            begin=data_start + entry.data_offsets[0],
            end=data_start + entry.data_offsets[1],
        )
        for name, entry in entries.items()
    }
    for name, tensor in stored.items():
        width = TYPES[tensor.type][1] if tensor.type in TYPES else None
        if width is not None and tensor.end - tensor.begin != width * math.prod(tensor.shape):
            raise CheckpointError(f"{path}: the size of tensor {name} contradicts its shape; fetch the file again")
    return stored
