"""What the layers need to know of a step's batch, computed once a step and used by every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.step_plan import StepPlan


@dataclass(frozen=True)
class Decodes:
    """Sequences with one token in this step, and contexts of similar length.

    rows [n]: their tokens' places in the flat batch. blocks [n * blocks]: their block tables, padded to the longest.
    masks: by sliding window, [n, 1, 1, blocks * block_size], True where the token may look.
    """

    rows: Tensor
    blocks: Tensor
    masks: dict[int, Tensor]


@dataclass(frozen=True)
class Chunk:
    """A sequence with several tokens in this step, [start, stop) of the flat batch, at positions from `position` on.

    blocks [blocks]: its block table. masks: by sliding window, [tokens, context], or None where plain causal.
    """

    start: int
    stop: int
    position: int
    blocks: Tensor
    masks: dict[int, Tensor | None]

    @property
    def context(self) -> int:
        """Tokens of the sequence up to the end of the chunk."""
        return self.position + self.stop - self.start


@dataclass(frozen=True)
class Batch:
    """One flat batch of tokens.

    tokens, positions, cache_slots [tokens]: ids, positions in their sequences, places in the KV cache.
    sample_rows [samples]: tokens after which a token is sampled.
    """

    tokens: Tensor
    positions: Tensor
    cache_slots: Tensor
    decodes: tuple[Decodes, ...]
    chunks: tuple[Chunk, ...]
    sample_rows: Tensor


class BatchBuilder:
    """Keeps the block tables of the running sequences and turns StepPlans into Batches.

    `windows` are the distinct sliding windows of the rank's layers (0 for full attention).
    """

    def __init__(
        self, max_running: int, max_blocks: int, block_size: int, windows: frozenset[int], device: torch.device
    ) -> None:
        self.block_size = block_size
        self.windows = windows
        self.device = device
        self._tables = torch.zeros(max_running, max_blocks, dtype=torch.int64)

    def update(self, plan: StepPlan) -> None:
        """Takes in which blocks sequences got. Before anything else of a step."""
        updates = torch.from_numpy(plan.block_updates).long()
        self._tables[updates[:, 0], updates[:, 1]] = updates[:, 2]

    def tables(self, slots: Tensor) -> Tensor:
        """[n, max_blocks], in host memory."""
        return self._tables[slots]

    def build(self, plan: StepPlan) -> Batch:
        slots, starts, counts, samples = torch.from_numpy(plan.rows).long().unbind(1)  # [sequences] each
        ends = counts.cumsum(0)
        firsts = ends - counts
        row_of = torch.repeat_interleave(counts)  # [tokens]
        positions = torch.arange(len(plan.tokens)) - firsts[row_of] + starts[row_of]
        size = self.block_size
        cache_slots = self._tables[slots[row_of], positions // size] * size + positions % size
        device = self.device
        return Batch(
            tokens=torch.from_numpy(plan.tokens).long().to(device),
            positions=positions.to(device),
            cache_slots=cache_slots.to(device),
            decodes=self._decodes(slots, starts, firsts, counts == 1),
            chunks=tuple(
                self._chunk(int(firsts[i]), int(ends[i]), int(starts[i]), self._tables[slots[i]])
                for i in (counts > 1).nonzero()[:, 0].tolist()
            ),
            sample_rows=_last_of_each(ends, samples).to(device),
        )

    def _decodes(self, slots: Tensor, positions: Tensor, firsts: Tensor, single: Tensor) -> tuple[Decodes, ...]:
        """One group for each power of two of the context's blocks, so that no context is padded to twice its length."""
        rows = single.nonzero()[:, 0]
        if not len(rows):
            return ()
        blocks = positions[rows] // self.block_size + 1
        bucket = torch.ceil(torch.log2(blocks.float())).int()
        groups = []
        for value in sorted(set(bucket.tolist())):
            members = rows[bucket == value]
            tables = self._tables[slots[members], : int(blocks[bucket == value].max())]  # [n, blocks]
            places, tables, at = (x.to(self.device) for x in (firsts[members], tables, positions[members]))
            groups.append(decodes_of(places, tables, at, self.block_size, self.windows))
        return tuple(groups)

    def _chunk(self, start: int, stop: int, position: int, table: Tensor) -> Chunk:
        context = position + stop - start
        behind = torch.arange(position, context)[:, None] - torch.arange(context)
        return Chunk(
            start=start,
            stop=stop,
            position=position,
            blocks=table[: -(-context // self.block_size)].to(self.device),
            masks={
                w: None if position == 0 and (not w or context <= w) else _allowed(behind, w).to(self.device)
                for w in self.windows
            },
        )


def decodes_of(rows: Tensor, tables: Tensor, positions: Tensor, block_size: int, windows: frozenset[int]) -> Decodes:
    """Of tokens at rows [n] of the flat batch, tables [n, blocks] and positions [n] of their sequences."""
    context = torch.arange(tables.shape[1] * block_size, device=positions.device)
    behind = positions.unsqueeze(1) - context  # [n, context]: how far back each key is
    return Decodes(
        rows=rows,
        blocks=tables.reshape(-1),
        masks={window: _allowed(behind, window)[:, None, None] for window in windows},
    )


def _last_of_each(ends: Tensor, counts: Tensor) -> Tensor:
    """The last counts[i] places before each ends[i], one after the other: [counts.sum()]."""
    places = torch.repeat_interleave(ends - counts.cumsum(0), counts)
    return places + torch.arange(len(places))


def _allowed(behind: Tensor, window: int) -> Tensor:
    causal = behind >= 0
    return causal & (behind < window) if window else causal
