"""Draws the next token of every sequence from vocabulary-sharded logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from partitioning.plan import Span
from workers.collectives import Group
from workers.sampling.drawing import Drawing
from workers.sampling.draws import DRAW, Draws
from workers.sampling.sampled import NO_LOGPROBS, Drawn, Sampled
from workers.sampling.state import PENALISED, REPORTED, SamplingState
from workers.sampling.torch_drawing import likeliest
from workers.step_plan import StepPlan
from workers.transfer import to_device

Slots = npt.NDArray[np.integer[Any]]


class Sampler:
    """One rank's half of the draw. Every rank of the last stage calls it alike and gets the same tokens. `last_tokens`:
    where the device keeps them, if it has to: see `Stage`."""

    def __init__(
        self,
        max_running: int,
        vocab: Span,
        group: Group,
        device: torch.device,
        drawing: Drawing,
        last_tokens: Tensor | None = None,
    ) -> None:
        self._state = SamplingState(max_running, vocab, device)
        self._first_id = vocab.start
        self._group = group
        self._device = device
        self._drawing = drawing
        self._last_tokens = last_tokens
        self._slots: bytes | None = None  # of the draws that were asked for last,
        self._recent = np.empty(0, dtype=DRAW)  # these,
        self._plain = True  # and whether they are all that is needed

    def apply(self, plan: StepPlan) -> None:
        """Takes in a step's news; comes before what follows."""
        self._state.apply(plan)
        if len(plan.admissions):
            self._slots = None

    def draws(self, slots: Slots, positions: npt.NDArray[np.int64]) -> Draws | None:
        """How the tokens at `positions` of the sequences in `slots` are drawn, if the best score of each shard is all
        that is needed: then `choose` does the rest. Else None, and `sample` needs logits. Valid until the next call."""
        draws = self._draws(slots, positions)
        return draws if self._plain else None

    def choose(self, scores: npt.NDArray[np.float32], ids: npt.NDArray[np.int32]) -> Sampled:
        """The tokens of the shards' best scores [samples] and their ids."""
        if self._group.size > 1:
            ids = likeliest(self._group, torch.from_numpy(scores), torch.from_numpy(ids)).numpy()
        return Sampled(ids.tolist(), NO_LOGPROBS)

    def sample(self, logits: Tensor, slots: Slots, positions: npt.NDArray[np.int64]) -> Drawn:
        """logits [samples, shard] float32, which penalties change, for the tokens at `positions` of the sequences in
        `slots`."""
        tasks = self._state.tasks[slots]
        every = int(np.bitwise_or.reduce(tasks))
        if every & REPORTED:
            reporting = self._rows(np.flatnonzero(tasks & REPORTED))
            own = logits[reporting]
        if every & PENALISED:
            self._state.penalise(logits, slots)
        tokens = self._drawing.draw(logits, self._draws(slots, positions))
        if self._last_tokens is not None:
            self._last_tokens[self._rows(slots)] = tokens
        if not every & REPORTED:
            return Drawn(tokens)
        alternatives = int(self._state.parameters[slots]["logprobs"].max())
        return Drawn(tokens, self._logprobs(own, tokens[reporting], alternatives))

    def _draws(self, slots: Slots, positions: npt.NDArray[np.int64]) -> Draws:
        if self._slots != (asked := slots.tobytes()):  # most steps have the sequences of the one before
            self._slots = asked
            self._plain = not self._state.tasks[slots].any()
            self._recent = self._state.draws[slots]
        self._recent["position"] = positions
        return self._recent

    def _logprobs(self, logits: Tensor, tokens: Tensor, count: int) -> Tensor:
        """Under the model's own distribution: see `Sampled`."""
        rows, shard = logits.shape
        best, columns = logits.topk(min(count, shard), dim=1)
        column = tokens - self._first_id
        mine = (column >= 0) & (column < shard)
        message = logits.new_full((rows, 2 + 2 * count), -torch.inf)
        message[:, 0] = logits.logsumexp(dim=1) if shard else -torch.inf
        if shard:
            found = logits.gather(1, column.clamp(0, shard - 1).unsqueeze(1))[:, 0]
            message[:, 1] = found.masked_fill(~mine, -torch.inf)
        message[:, 2 : 2 + best.shape[1]] = best
        message[:, 2 + count : 2 + count + best.shape[1]] = (columns + self._first_id).float()
        gathered = self._group.all_gather(message)  # [size, rows, ...]
        norm = gathered[:, :, 0].logsumexp(dim=0).unsqueeze(1)  # [rows, 1]
        token = gathered[:, :, 1].amax(dim=0).unsqueeze(1)
        values = gathered[:, :, 2 : 2 + count].transpose(0, 1).flatten(1)
        ids = gathered[:, :, 2 + count :].transpose(0, 1).flatten(1)
        values, order = values.sort(dim=1, descending=True, stable=True)
        values, ids = values[:, :count], ids.gather(1, order)[:, :count]
        return torch.cat([token - norm, values - norm, ids], dim=1)

    def _rows(self, rows: npt.NDArray[np.integer[Any]]) -> Tensor:
        return to_device(torch.from_numpy(rows), self._device).long()
