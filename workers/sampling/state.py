"""What the sampler remembers of every running sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from partitioning.plan import Span
from workers.sampling.draws import DRAW, filtering
from workers.step_plan import ADMISSION, StepPlan

FILTERED, PENALISED, REPORTED = 1, 2, 4
_LEAST_TEMPERATURE = 1e-20  # that leaves logits / temperature finite


class SamplingState:
    """Sampling parameters by slot, and, once a sequence asks for penalties, token counts by slot and shard column.

    Both [max_running]: `draws` how tokens are drawn, but for their positions; `tasks` what it takes more of the logits
    than the best score, in bits.
    """

    def __init__(self, max_running: int, vocab: Span, device: torch.device) -> None:
        self.parameters = np.zeros(max_running, dtype=ADMISSION)
        self.draws = np.zeros(max_running, dtype=DRAW)
        self.tasks = np.zeros(max_running, dtype=np.uint8)
        self._vocab = vocab
        self._device = device
        self._generated: Tensor | None = None  # [max_running, shard] int32
        self._seen: Tensor | None = None  # [max_running, shard] bool: in the prompt or generated

    def apply(self, plan: StepPlan) -> None:
        """Takes in admissions, and counts the tokens of sequences with penalties."""
        if len(plan.admissions):
            self._admit(plan.admissions)
        if self._generated is not None:
            self._count_all(plan)

    def _admit(self, admissions: npt.NDArray[np.void]) -> None:
        slots, counted = admissions["slot"], penalised(admissions)
        self.parameters[slots] = admissions
        draws = np.zeros(len(slots), dtype=DRAW)
        for name in ("temperature", "top_k", "top_p", "min_p"):
            draws[name] = admissions[name]
        random = draws["temperature"] > 0
        draws["temperature"][random] = draws["temperature"][random].clip(min=_LEAST_TEMPERATURE)
        low, high = (admissions[name].astype(np.uint32).astype(np.uint64) for name in ("seed_low", "seed_high"))
        draws["seed"] = low | (high << np.uint64(32))
        self.draws[slots] = draws
        self.tasks[slots] = FILTERED * filtering(draws) | PENALISED * counted | REPORTED * (admissions["logprobs"] >= 0)
        fresh = slots[counted]
        if len(fresh):
            if self._generated is None:
                shape = (len(self.parameters), len(self._vocab))
                self._generated = torch.zeros(shape, dtype=torch.int32, device=self._device)
                self._seen = torch.zeros(shape, dtype=torch.bool, device=self._device)
            assert self._seen is not None
            rows = torch.from_numpy(fresh).long()
            self._generated[rows] = 0
            self._seen[rows] = False

    def _count_all(self, plan: StepPlan) -> None:
        slots, starts, counts, _ = plan.rows.T
        for i in np.flatnonzero(penalised(self.parameters[slots])):
            first = int(counts[:i].sum())
            tokens = plan.tokens[first : first + counts[i]]
            self._count(int(slots[i]), int(starts[i]), tokens)

    def _count(self, slot: int, start: int, tokens: npt.NDArray[np.int32]) -> None:
        assert self._generated is not None
        assert self._seen is not None
        mine = (tokens >= self._vocab.start) & (tokens < self._vocab.stop)
        columns = torch.from_numpy(tokens[mine] - self._vocab.start).long().to(self._device)
        self._seen[slot, columns] = True
        generated = start + np.flatnonzero(mine) >= self.parameters[slot]["prompt_len"]
        columns = columns[torch.from_numpy(generated).to(self._device)]
        self._generated[slot].index_add_(0, columns, torch.ones_like(columns, dtype=torch.int32))

    def penalise(self, logits: Tensor, slots: npt.NDArray[np.integer[Any]]) -> None:
        """Changes the logits [rows, shard] of sequences that ask for it, in place.

        Repetition (Keskar et al., "CTRL", 2019) covers prompt and generated tokens; presence and frequency cover
        generated ones.
        """
        parameters = self.parameters[slots]
        affected = np.flatnonzero(penalised(parameters))
        assert self._generated is not None
        assert self._seen is not None

        def column(name: str) -> Tensor:
            return torch.from_numpy(parameters[name][affected].copy()).to(self._device).unsqueeze(1)

        rows = torch.from_numpy(affected).to(self._device)
        where = torch.from_numpy(slots[affected]).to(self._device).long()
        x = logits[rows]
        repetition = column("repetition_penalty")
        x = torch.where(self._seen[where], torch.where(x > 0, x / repetition, x * repetition), x)
        counts = self._generated[where]
        x -= column("frequency_penalty") * counts
        x -= column("presence_penalty") * (counts > 0)
        logits[rows] = x


def penalised(parameters: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    asks: npt.NDArray[np.bool_] = (
        (parameters["presence_penalty"] != 0)
        | (parameters["frequency_penalty"] != 0)
        | (parameters["repetition_penalty"] != 1)
    )
    return asks
