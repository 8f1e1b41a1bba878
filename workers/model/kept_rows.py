"""What a KV cache keeps of keys or of values, each a row [kv_heads, head_dim] for every token."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

LARGEST_CODE = 127
LEAST = 1e-30  # the largest magnitude of a vector counts as at least this, so that zeros have a scale


class KeptRows(Protocol):
    """`kept` [blocks, block_size, kv_heads, head_dim], times `scales` [blocks, block_size, kv_heads, 1] if there are
    any."""

    @property
    def kept(self) -> Tensor: ...

    @property
    def scales(self) -> Tensor | None: ...

    def write(self, slots: Tensor, rows: Tensor) -> Tensor:
        """Keeps rows [n, kv_heads, head_dim] at slots [n]; returns them as they will be read."""
        ...

    def read(self, blocks: Tensor) -> Tensor:
        """The rows of the blocks, one block after the other: [len(blocks) * block_size, kv_heads, head_dim]."""
        ...


class FloatRows:
    """Rows in the type of the activations."""

    scales = None

    def __init__(
        self, blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.kept = torch.zeros(blocks, block_size, kv_heads, head_dim, dtype=dtype, device=device)

    def write(self, slots: Tensor, rows: Tensor) -> Tensor:
        self.kept.flatten(0, 1).index_copy_(0, slots, rows)
        return rows

    def read(self, blocks: Tensor) -> Tensor:
        return self.kept.index_select(0, blocks).flatten(0, 1)


class Int8Rows:
    """Rows in 8 bits, with a float32 scale for every head of every token: as in the native library (csrc/cache.h, which
    says why), and with the same codes where the rows are the same."""

    def __init__(
        self, blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.kept = torch.zeros(blocks, block_size, kv_heads, head_dim, dtype=torch.int8, device=device)
        self.scales = torch.zeros(blocks, block_size, kv_heads, 1, dtype=torch.float32, device=device)
        self._dtype = dtype

    def write(self, slots: Tensor, rows: Tensor) -> Tensor:
        wide = rows.float()
        most = wide.abs().amax(dim=2, keepdim=True)
        codes = (wide * (LARGEST_CODE / most.clamp(min=LEAST))).round().to(torch.int8)
        scales = most / LARGEST_CODE
        self.kept.flatten(0, 1).index_copy_(0, slots, codes)
        self.scales.flatten(0, 1).index_copy_(0, slots, scales)
        return self._floats(codes, scales)

    def read(self, blocks: Tensor) -> Tensor:
        codes, scales = (kept.index_select(0, blocks).flatten(0, 1) for kept in (self.kept, self.scales))
        return self._floats(codes, scales)

    def _floats(self, codes: Tensor, scales: Tensor) -> Tensor:
        return (codes * scales).to(self._dtype)
