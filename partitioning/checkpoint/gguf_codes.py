"""GGUF's 8 and 4-bit blocks, taken apart into codes, scales and offsets without changing a value.

The layouts are those of ggml's `ggml-common.h` and of the `gguf` package: a block of 32 weights begins with float16
scales and has its first half's codes in the low halves of its bytes; Q4_K packs eight groups of 32 under two float16
factors and sixteen numbers of six bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from partitioning.quantised import GROUP, Quantised

Bytes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.float16]


def _q8_0(data: Bytes) -> Quantised:
    blocks = _blocks(data, 34)
    codes = blocks[:, :, 2:] ^ np.uint8(0x80)  # signed to centred
    return _quantised(8, codes, _half(blocks[:, :, :2]))


def _q4_0(data: Bytes) -> Quantised:
    blocks = _blocks(data, 18)
    return _quantised(4, _nibbles(blocks[:, :, 2:]), _half(blocks[:, :, :2]))


def _q4_1(data: Bytes) -> Quantised:
    blocks = _blocks(data, 20)
    return _quantised(4, _nibbles(blocks[:, :, 4:]), _half(blocks[:, :, :2]), _half(blocks[:, :, 2:4]))


def _q4_k(data: Bytes) -> Quantised:
    blocks = _blocks(data, 144)
    factor, least = (_half(blocks[:, :, at : at + 2]).astype(np.float32) for at in (0, 2))
    packed = blocks[:, :, 4:16]
    low, high, rest = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 6 << 4)], axis=2)  # [rows, blocks, 8]
    offsets = np.concatenate([high & 63, (rest >> 4) | (high >> 6 << 4)], axis=2)
    codes = _nibbles(_blocks(blocks[:, :, 16:].reshape(len(data), blocks.shape[1] * 128), GROUP), GROUP)
    return _quantised(
        4, codes, (factor[:, :, None] * scales).astype(np.float16), (-least[:, :, None] * offsets).astype(np.float16)
    )


def _blocks(data: Bytes, size: int) -> Bytes:
    """[rows, blocks, size] from [rows, bytes], also where there are none."""
    return data.reshape(len(data), data.shape[1] // size, size)


def _half(pairs: Bytes) -> Halves:
    """[rows, blocks] float16 from [rows, blocks, 2] bytes."""
    return np.ascontiguousarray(pairs).view(np.float16)[:, :, 0]


def _nibbles(data: Bytes, apart: int = GROUP // 2) -> Bytes:
    """[rows, blocks, 2 * apart]: the low halves of `apart` bytes, then their high halves."""
    assert data.shape[2] == apart
    return np.concatenate([data & 15, data >> 4], axis=2)


def _quantised(bits: int, codes: Bytes, scales: Halves, offsets: Halves | None = None) -> Quantised:
    def table(values: Halves) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).flatten(1)

    flat = torch.from_numpy(np.ascontiguousarray(codes)).flatten(1)
    return Quantised(bits, flat, table(scales), None if offsets is None else table(offsets))


GGUF_CODES: dict[str, Callable[[Bytes], Quantised]] = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k}
