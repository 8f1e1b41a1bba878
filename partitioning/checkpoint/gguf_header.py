"""The head of a GGUF file: its metadata and where its tensors lie.

The `gguf` package's own reader builds several numpy arrays for every string of the vocabulary, which takes seconds;
this scan takes a few hundredths, and every rank does it. The layout is that of GGUF versions 2 and 3 (ggml's
docs/gguf.md); the numbers of the types come from the `gguf` package.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from partitioning.checkpoint.base import CheckpointError, StoredTensor
from partitioning.checkpoint.files import file_size

Scalar: TypeAlias = int | float | bool | str
"""A single value of the metadata."""

_SCALARS = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
    GGUFValueType.BOOL: struct.Struct("<?"),
}
_U32 = _SCALARS[GGUFValueType.UINT32]
_U64 = _SCALARS[GGUFValueType.UINT64]

# The largest vocabularies have 20 MB and 700,000 strings; the most that these take in memory is 1 GB.
_MOST_BYTES = 64 << 20
_MOST_ITEMS = 4 << 20
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufHeader:
    """`metadata` holds scalars, strings and lists of them. `tensors` go by their GGUF names, with shapes in row-major
    order: [outputs, inputs] for a weight."""

    metadata: dict[str, Scalar | list[Scalar]]
    tensors: dict[str, StoredTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Scan the head of a GGUF file. Raises CheckpointError when it is no GGUF file, damaged, or of another version."""
    file_size(path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path} does not begin with the GGUF magic; it is not a GGUF file, or is damaged")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Scan(path, content).header()
            except (struct.error, ValueError, KeyError, OverflowError) as error:
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(f"{path}: the GGUF header is cut short or damaged; fetch it again") from error


class _Scan:
    """A cursor over the file."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path = path
        self.content = content
        self.at = 4
        self.end = min(len(content), _MOST_BYTES)
        self.items = 0

    def header(self) -> GgufHeader:
        version = self.number(_U32)
        if version not in (2, 3):
            raise CheckpointError(
                f"{self.path} is GGUF version {version}; little-endian versions 2 and 3 are supported"
            )
        tensor_count, key_count = self.number(_U64), self.number(_U64)
        metadata: dict[str, Scalar | list[Scalar]] = {}
        self.count(key_count)
        for _ in range(key_count):
            key = self.string()
            if key in metadata:
                raise ValueError(f"the key {key} is there twice")
            metadata[key] = self.value(GGUFValueType(self.number(_U32)))
        self.count(tensor_count)
        places = dict(self.tensor_place() for _ in range(tensor_count))
        if len(places) != tensor_count:
            raise ValueError("a tensor is there twice")
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise CheckpointError(f"{self.path}: general.alignment {alignment!r} is not a positive number")
        data_start = -(-self.at // alignment) * alignment
        return GgufHeader(metadata, {name: self.stored(data_start, *place) for name, place in places.items()})

    def count(self, items: int) -> None:
        """So many keys, tensors or values of a list follow; each takes a byte at least."""
        self.items += items
        if self.items > _MOST_ITEMS or items > self.end - self.at:
            raise ValueError(f"{items} entries are more than there can be")

    def number(self, form: struct.Struct) -> Any:
        (value,) = form.unpack(self.bytes(form.size))
        return value

    def string(self) -> str:
        return self.bytes(self.number(_U64)).decode()

    def bytes(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > self.end:
            raise ValueError("the file, or what its head may have, ends within the head")
        return self.content[start : self.at]

    def value(self, kind: GGUFValueType) -> Scalar | list[Scalar]:
        if kind != GGUFValueType.ARRAY:
            return self.scalar(kind)
        item = GGUFValueType(self.number(_U32))
        count = self.number(_U64)
        self.count(count)
        if item == GGUFValueType.STRING:
            return [self.string() for _ in range(count)]
        form = _SCALARS[item]
        return [value for (value,) in form.iter_unpack(self.bytes(count * form.size))]

    def scalar(self, kind: GGUFValueType) -> Scalar:
        return self.string() if kind == GGUFValueType.STRING else self.number(_SCALARS[kind])

    def tensor_place(self) -> tuple[str, tuple[GGMLQuantizationType, tuple[int, ...], int]]:
        name = self.string()
        dimensions = self.number(_U32)
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        dims = [self.number(_U64) for _ in range(dimensions)]
        kind = GGMLQuantizationType(self.number(_U32))
        return name, (kind, tuple(reversed(dims)), self.number(_U64))

    def stored(self, data_start: int, kind: GGMLQuantizationType, shape: tuple[int, ...], offset: int) -> StoredTensor:
        block_values, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block_values:
            raise ValueError(f"a tensor of shape {shape} cannot be cut into blocks of {block_values} values")
        begin = data_start + offset
        return StoredTensor(str(self.path), kind.name, shape, begin, begin + prod(shape) // block_values * block_bytes)
