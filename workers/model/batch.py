"""What the layers need to know of a step's batch, computed once a step and used by every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.step_plan import LAST, StepPlan
from workers.transfer import to_device


@dataclass(frozen=True)
class Sequences:
    """The sequences of a step, each with the tokens [firsts[i], firsts[i] + counts[i]) of the flat batch, at positions
    from starts[i] on.

    tables [slots, blocks]: all block tables, on the device. slots, starts, firsts, counts [sequences]: in host memory.
    """

    tables: Tensor
    slots: Tensor
    starts: Tensor
    firsts: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Batch:
    """One flat batch of tokens.

    tokens, positions, cache_slots [tokens]: ids, positions in their sequences, places in the KV cache.
    attention: what the kernels' `plan` has made of the sequences.
    sample_rows [samples]: tokens after which a token is sampled.
    """

    tokens: Tensor
    positions: Tensor
    cache_slots: Tensor
    attention: Any
    sample_rows: Tensor


class BatchBuilder:
    """Keeps what the device has to know of the running sequences, and turns StepPlans into Batches.

    `tables` [max_running + 1, max_blocks]: block tables; the last one is of no sequence, and names a block that is
    nobody's. `last_tokens` [max_running + 1]: what was drawn last for each, kept up to date by who draws.
    """

    def __init__(
        self,
        max_running: int,
        max_blocks: int,
        block_size: int,
        spare_block: int,
        attention_plan: Callable[[Sequences], Any],
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.device = device
        self.tables = torch.full((max_running + 1, max_blocks), spare_block, device=device)
        self.last_tokens = torch.zeros(max_running + 1, dtype=torch.int64, device=device)
        self._attention_plan = attention_plan

    def update(self, plan: StepPlan) -> None:
        """Takes in which blocks sequences got. Before anything else of a step."""
        if len(plan.block_updates):
            slots, numbers, blocks = to_device(torch.from_numpy(plan.block_updates), self.device).long().unbind(1)
            self.tables[slots, numbers] = blocks

    def build(self, plan: StepPlan) -> Batch:
        slots, starts, counts, samples = torch.from_numpy(plan.rows).long().unbind(1)  # [sequences] each
        ends = counts.cumsum(0)
        firsts = ends - counts
        row_of = torch.repeat_interleave(counts)  # [tokens]
        positions = torch.arange(len(plan.tokens)) - firsts[row_of] + starts[row_of]
        tokens = torch.from_numpy(plan.tokens).long()
        tokens, positions, slot_of = to_device(torch.stack([tokens, positions, slots[row_of]]), self.device)
        return Batch(
            tokens=self.known(tokens, slot_of),
            positions=positions,
            cache_slots=self.cache_slots(slot_of, positions),
            attention=self._attention_plan(Sequences(self.tables, slots, starts, firsts, counts)),
            sample_rows=to_device(_last_of_each(ends, samples), self.device),
        )

    def known(self, tokens: Tensor, slots: Tensor) -> Tensor:
        """[tokens]: those that are LAST are what was drawn last for their slots."""
        return torch.where(tokens == LAST, self.last_tokens[slots], tokens)

    def cache_slots(self, slots: Tensor, positions: Tensor) -> Tensor:
        """[tokens]: where the token at a position of a slot's sequence is kept."""
        return self.tables[slots, positions // self.block_size] * self.block_size + positions % self.block_size


def _last_of_each(ends: Tensor, counts: Tensor) -> Tensor:
    """The last counts[i] places before each ends[i], one after the other: [counts.sum()]."""
    places = torch.repeat_interleave(ends - counts.cumsum(0), counts)
    return places + torch.arange(len(places))
