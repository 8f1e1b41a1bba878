"""How a step's query tokens are cut into the tiles that programs of the attention kernel take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
from torch import Tensor

from workers.model.batch import Sequences
from workers.transfer import to_device

_FEW_ROWS = 16  # the least that matrix units multiply


@dataclass(frozen=True)
class Tiles:
    """Query tokens that are attended for together, int64 [tiles, 4]: the first one's row in the flat batch, its
    position, how many they are, and the slot of their sequence. `rows`: tokens × their readers, at the most."""

    entries: Tensor
    rows: int


@dataclass(frozen=True)
class PagedPlan:
    """Of a step. `tables` [slots, blocks]: block tables. Tiles of `few` rows wait for memory, those of `many` are for
    matrix units to be busy with."""

    tables: Tensor
    few: Tiles
    many: Tiles


class Tiling:
    """Of a rank whose KV head i is read by `readers[i]` query heads, rows of `row_bytes`.

    firsts int32 [kv_heads + 1]: KV head i is read by the query heads from `firsts[i]` up to `firsts[i + 1]`, `most` at
    the most. keys: so many of a tile's keys are looked at together.
    """

    def __init__(self, readers: Sequence[int], row_bytes: int, device: torch.device) -> None:
        self.firsts = torch.tensor([0, *accumulate(readers)], dtype=torch.int32, device=device)
        self.kv_heads, self.most = len(readers), max(readers, default=1)
        # As much as there is room for in 96 KiB of shared memory.
        many, self.keys = (128, 64) if row_bytes <= 256 else (32, 32) if row_bytes <= 512 else (16, 16)
        least = triton.next_power_of_2(self.most)
        self._few_rows, self._many_rows = max(_FEW_ROWS, least), max(many, least)

    def plan(self, sequences: Sequences) -> PagedPlan:
        few, many = self._few_rows // self.most, self._many_rows // self.most
        short = sequences.counts <= few
        return PagedPlan(
            sequences.tables,
            Tiles(_tiles(sequences, short, few), self._few_rows),
            Tiles(_tiles(sequences, ~short, many), self._many_rows),
        )

    def decoding(self, tables: Tensor, slots: Tensor, positions: Tensor) -> PagedPlan:
        """Of one token for each slot, all on the device."""
        entries = torch.stack(
            [torch.arange(len(slots), device=slots.device), positions, torch.ones_like(slots), slots], dim=1
        )
        return PagedPlan(tables, Tiles(entries, self._few_rows), Tiles(entries[:0], self._many_rows))


def _tiles(sequences: Sequences, which: Tensor, tokens: int) -> Tensor:
    """[tiles, 4], of `tokens` tokens each, on the device."""
    slots, starts, firsts, counts = (
        x[which] for x in (sequences.slots, sequences.starts, sequences.firsts, sequences.counts)
    )
    tiles = -(-counts // tokens)
    of = torch.repeat_interleave(tiles)
    done = (torch.arange(len(of)) - (tiles.cumsum(0) - tiles)[of]) * tokens
    entries = torch.stack(
        [firsts[of] + done, starts[of] + done, (counts[of] - done).clamp(max=tokens), slots[of]], dim=1
    )
    return to_device(entries, sequences.tables.device)
