"""Draws the next token of every sequence from vocabulary-sharded logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from partitioning.plan import Span
from workers.collectives import Group
from workers.sampling.filtered import filtered_candidates
from workers.sampling.noise import gumbel, token_keys
from workers.sampling.state import SamplingState
from workers.seeds import row_keys
from workers.step_plan import StepPlan


@dataclass(frozen=True)
class Sampled:
    """tokens [samples]. logprobs [rows that ask for them, 1 + 2 * n] float32: the token's own, then the n best
    logprobs, then their ids, n being the most that any row asks for; no rows when none does. All on the CPU."""

    tokens: Tensor
    logprobs: Tensor


_NO_LOGPROBS = torch.empty(0, 1)


class Sampler:
    """One rank's half of the draw. Every rank of the last stage calls it alike and gets the same tokens."""

    def __init__(self, max_running: int, vocab: Span, vocab_size: int, group: Group, device: torch.device) -> None:
        self._state = SamplingState(max_running, vocab, device)
        self._first_id = vocab.start
        self._vocab_size = vocab_size
        self._group = group
        self._device = device
        self._keys = token_keys(torch.arange(vocab.start, vocab.stop, device=device))  # [shard]

    def apply(self, plan: StepPlan) -> None:
        """Takes in a step's news; comes before `sample`."""
        self._state.apply(plan)

    def greedy(self, slots: npt.NDArray[np.integer[Any]]) -> bool:
        """Whether these sequences all take the likeliest token as it is, and want no logprobs."""
        return bool(self._state.greedy[slots].all())

    def choose(self, values: npt.NDArray[np.float32], ids: npt.NDArray[np.int32]) -> Sampled:
        """The likeliest of the shards' largest logits [samples] and their ids."""
        if self._group.size == 1:
            return Sampled(torch.from_numpy(ids), _NO_LOGPROBS)
        offers = np.stack([values, ids.astype(np.float32)])  # ids are exact below 2**24
        return Sampled(_likeliest(self._group.all_gather(torch.from_numpy(offers))), _NO_LOGPROBS)

    def sample(self, logits: Tensor, slots: npt.NDArray[np.integer[Any]], positions: npt.NDArray[np.int64]) -> Sampled:
        """logits [samples, shard] float32 (used up), for the tokens at `positions` of the sequences in `slots`."""
        where = slots.astype(np.int64)
        parameters = self._state.parameters[where]
        reporting = np.flatnonzero(parameters["logprobs"] >= 0)
        own = logits[self._rows(reporting)] if len(reporting) else None

        self._state.penalise(logits, where)
        drawing = parameters["temperature"] > 0
        filtering = drawing & ((parameters["top_k"] > 0) | (parameters["top_p"] < 1) | (parameters["min_p"] > 0))
        keys = self._row_keys(parameters, positions)
        if drawing.any():
            temperatures = np.where(drawing, parameters["temperature"], 1)
            logits /= torch.from_numpy(temperatures).to(self._device).unsqueeze(1)
        plain = np.flatnonzero(drawing & ~filtering)
        if len(plain):
            rows = self._rows(plain)
            logits[rows] += gumbel(self._keys, keys[rows])

        tokens = self._best(logits)
        if filtering.any():
            rows = self._rows(np.flatnonzero(filtering))
            tokens[rows] = self._draw_filtered(logits[rows], parameters[filtering], keys[rows])
        if own is None:
            return Sampled(tokens.cpu(), torch.empty(0, 1))
        alternatives = int(parameters["logprobs"].max())
        return Sampled(tokens.cpu(), self._logprobs(own, tokens[self._rows(reporting)], alternatives).cpu())

    def _best(self, logits: Tensor) -> Tensor:
        """[rows]: the id of the largest logit over all shards; of equal ones the lowest."""
        if logits.shape[1]:
            value, column = logits.max(dim=1)
        else:
            value = logits.new_full((len(logits),), -torch.inf)
            column = torch.zeros_like(value, dtype=torch.int64)
        return _likeliest(self._group.all_gather(torch.stack([value, (column + self._first_id).float()])))

    def _draw_filtered(self, logits: Tensor, parameters: npt.NDArray[np.void], keys: Tensor) -> Tensor:
        top_k, top_p, min_p = (
            torch.from_numpy(parameters[name].copy()).to(self._device) for name in ("top_k", "top_p", "min_p")
        )
        values, ids = filtered_candidates(
            logits, self._first_id, top_k.clamp(max=self._vocab_size), top_p, min_p, self._vocab_size, self._group
        )
        winner = (values + gumbel(token_keys(ids), keys)).argmax(dim=1, keepdim=True)
        return ids.gather(1, winner)[:, 0]

    def _logprobs(self, logits: Tensor, tokens: Tensor, count: int) -> Tensor:
        """Under the model's own distribution: see `Sampled`."""
        rows, shard = logits.shape
        best, columns = logits.topk(min(count, shard), dim=1)
        column = tokens - self._first_id
        mine = (column >= 0) & (column < shard)
        message = logits.new_full((rows, 2 + 2 * count), -torch.inf)
        message[:, 0] = logits.logsumexp(dim=1) if shard else -torch.inf
        message[mine, 1] = logits[mine].gather(1, column[mine].unsqueeze(1))[:, 0]
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

    def _row_keys(self, parameters: npt.NDArray[np.void], positions: npt.NDArray[np.int64]) -> Tensor:
        low = parameters["seed_low"].astype(np.uint32).astype(np.uint64)
        high = parameters["seed_high"].astype(np.uint32).astype(np.uint64)
        return torch.from_numpy(row_keys(low | (high << np.uint64(32)), positions)).to(self._device)

    def _rows(self, rows: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self._device)


def _likeliest(offers: Tensor) -> Tensor:
    """[rows] ids from the shards' [size, 2, rows] values and ids."""
    values, ids = offers.unbind(1)
    return ids.masked_fill(values < values.amax(dim=0), torch.inf).amin(dim=0).long()
