"""GGUF files: quantised blocks, memory-mapped, dequantised slice by slice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from gguf import dequantize
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from partitioning.checkpoint.base import Checkpoint, CheckpointError, StoredTensor, slice_bounds
from partitioning.checkpoint.gguf_header import read_gguf_header
from partitioning.checkpoint.gguf_spec import ROPE_FACTORS, hf_name, read_gguf_spec
from partitioning.checkpoint.tensors import Part, check_tensors, model_tensors
from partitioning.plan import Span

if TYPE_CHECKING:
    import torch

    from partitioning.quantised import Quantised
    from partitioning.topology import DeviceKind

Rows = slice | npt.NDArray[np.int64]

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_SUPPORTED = frozenset(_FLOATS) | frozenset(_BLOCKS)

# llama.cpp's converter interleaves the two halves of each head in these (for its own rotary kernel), in files of the
# architecture "llama" only.
_INTERLEAVED = re.compile(r".*\.self_attn\.[qk]_proj\.weight")


class GgufFile(Checkpoint):
    """The weights of a GGUF file, under Hugging Face's names and in its row order."""

    def __init__(self, path: Path) -> None:
        """Read the header and check it against the file. Raises CheckpointError."""
        header = read_gguf_header(path)
        size = path.stat().st_size
        stored = dict(header.tensors)
        factors = stored.pop(ROPE_FACTORS, None)
        spec = read_gguf_spec(path, header, () if factors is None else _rope_factors(factors, size))
        self._stored = {hf_name(name): tensor for name, tensor in stored.items()}
        expected = {name: Part(shape, _SUPPORTED) for name, shape in model_tensors(spec).items()}
        check_tensors(str(path), spec, expected, self._stored, {str(path): size})
        super().__init__(spec)
        self._bytes_read = 0
        self._interleaves = header.metadata["general.architecture"] == "llama"

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    def read(self, name: str, rows: Span | None = None, cols: Span | None = None) -> torch.Tensor:
        tensor = self._stored.get(name)
        if tensor is None:
            raise self._unknown(name)
        rows, cols = slice_bounds(name, tensor.shape, rows, cols)
        if cols is None:
            return self._dequantised(tensor, slice(0, 1), rows)[0]
        return self._dequantised(tensor, self._file_rows(name, rows), cols)

    def read_quantised(
        self, name: str, rows: Span | None = None, cols: Span | None = None, kind: DeviceKind = "cpu"
    ) -> Quantised | None:
        from partitioning.checkpoint.gguf_codes import GGUF_CODES  # needs torch
        from partitioning.quantised import GROUP

        tensor = self._stored.get(name)
        if tensor is None:
            raise self._unknown(name)
        rows, cols = slice_bounds(name, tensor.shape, rows, cols)
        if tensor.type not in GGUF_CODES or cols is None or cols.start % GROUP or cols.stop % GROUP:
            return None
        size, _ = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.type]]
        skipped = cols.start // size * size
        blocks = GGUF_CODES[tensor.type](self._blocks(tensor, self._file_rows(name, rows), cols))
        return blocks.columns(Span(cols.start - skipped, cols.stop - skipped))

    def close(self) -> None:
        pass  # nothing stays open between reads

    def _unknown(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.spec.name} has no tensor {name}")

    def _dequantised(self, tensor: StoredTensor, rows: Rows, cols: Span) -> torch.Tensor:
        """[rows, cols] of a tensor, a vector counting as one row. Whole blocks are read, then trimmed to `cols`."""
        import torch  # not to describe a model

        kind = GGMLQuantizationType[tensor.type]
        block_values, _ = GGML_QUANT_SIZES[kind]
        blocks = self._blocks(tensor, rows, cols)
        if not blocks.size:
            return torch.empty(len(blocks), len(cols), dtype=getattr(torch, _FLOATS.get(tensor.type, "float32")))
        if tensor.type in _FLOATS:
            return torch.from_numpy(blocks).view(getattr(torch, _FLOATS[tensor.type]))
        values = torch.from_numpy(dequantize(blocks, kind))
        skipped = cols.start // block_values * block_values
        return values[:, cols.start - skipped : cols.stop - skipped].contiguous()

    def _blocks(self, tensor: StoredTensor, rows: Rows, cols: Span) -> npt.NDArray[np.uint8]:
        """[rows, bytes]: the blocks that hold `cols`."""
        block_values, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.type]]
        table = tensor.mapped().reshape(-1, tensor.shape[-1] // block_values * block_bytes)
        first = cols.start // block_values
        last = -(-cols.stop // block_values) if cols else first
        blocks: npt.NDArray[np.uint8] = np.array(table[rows, first * block_bytes : last * block_bytes], order="C")
        self._bytes_read += blocks.size
        return blocks

    def _file_rows(self, name: str, rows: Span) -> Rows:
        """Where the file has the rows that Hugging Face's order calls `rows`."""
        if self._interleaves and _INTERLEAVED.fullmatch(name):
            return _interleaved_rows(rows, self.spec.head_dim)
        return slice(rows.start, rows.stop)


def _rope_factors(tensor: StoredTensor, file_size: int) -> tuple[float, ...]:
    if tensor.type != "F32" or tensor.end > file_size:
        raise CheckpointError(f"{tensor.file}: tensor {ROPE_FACTORS} is damaged; fetch the file again")
    return tuple(tensor.mapped().view(np.float32).tolist())


def _interleaved_rows(rows: Span, head_dim: int) -> npt.NDArray[np.int64]:
    """Where the rows of Hugging Face's order lie in a file that puts row i of a head's first half at 2i, and row i of
    its second half at 2i + 1."""
    row = np.arange(rows.start, rows.stop)
    head, place = np.divmod(row, head_dim)
    half, pair = np.divmod(place, head_dim // 2)
    return head * head_dim + 2 * pair + half
