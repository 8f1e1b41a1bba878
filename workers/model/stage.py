"""What computes a rank's part of a step: one interface, in torch here and in the native library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from partitioning.plan import Plan, RankPlan
from workers.collectives import Group
from workers.model.batch import BatchBuilder
from workers.model.kernels import Kernels
from workers.model.load import load_decoder
from workers.model.weights import WeightReader
from workers.request import EngineConfig
from workers.sampling.drawing import Drawing
from workers.sampling.draws import Draws
from workers.sampling.torch_drawing import TorchDrawing
from workers.step_plan import StepPlan
from workers.transfer import asynchronous


@dataclass
class StageResult:
    """`hidden` [tokens, hidden] float32 of a stage that is not the last. Of the last one, for the rows that are sampled
    after: `best`, the shard's best scores [samples], logit / temperature + noise, and their ids, when the stage was
    told how to draw and has done so, or `logits` [samples, shard] float32; the next step may overwrite both."""

    hidden: Tensor | None = None
    logits: Tensor | None = None
    best: tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]] | None = None


class Stage(Protocol):
    """`last_tokens` int64 [at least max_running]: where the tokens drawn last are to be put, by slot, so that plans may
    have LAST for them before anybody knows them; None where steps have ended when `run` returns."""

    last_tokens: Tensor | None

    @property
    def drawing(self) -> Drawing:
        """What draws from its logits."""
        ...

    def run(self, plan: StepPlan, hidden: Tensor | None, draws: Draws | None, layers: int | None = None) -> StageResult:
        """Runs the layers over the batch of `plan`. `hidden` [tokens, hidden] float32 comes from the stage before, None
        on the first. `draws` [samples]: the best score of every sampled row is all that is needed of its logits.
        `layers`: so many of the first, in place of all."""
        ...


class TorchStage:
    """The decoder of `workers.model` on any device of torch."""

    def __init__(
        self,
        weights: WeightReader,
        plan: Plan,
        rank: RankPlan,
        config: EngineConfig,
        group: Group,
        device: torch.device,
        kernels: Kernels,
    ) -> None:
        self._decoder = load_decoder(weights, plan, rank, kernels, group, config.max_model_len, device)
        self._batches = BatchBuilder(
            config.max_running,
            -(-config.max_model_len // plan.kv_block_size),
            plan.kv_block_size,
            plan.kv_blocks,
            kernels.plan,
            device,
        )
        self._dtype: torch.dtype = getattr(torch, plan.dtype)
        self.last_tokens = self._batches.last_tokens if asynchronous(device) else None
        self._graphs = kernels.graphs(self._decoder, self._batches, group.replayed)
        self.drawing = TorchDrawing(rank.vocab, plan.model.vocab_size, group, device)

    def run(self, plan: StepPlan, hidden: Tensor | None, draws: Draws | None, layers: int | None = None) -> StageResult:
        self._batches.update(plan)
        if self._graphs is not None and layers is None and (found := self._graphs.run(plan, hidden)) is not None:
            return StageResult(hidden=found) if self._decoder.head is None else StageResult(logits=found)
        batch = self._batches.build(plan)
        x = self._decoder.hidden(None if hidden is None else hidden.to(self._dtype), batch, layers)
        if self._decoder.head is None:
            return StageResult(hidden=x.float())
        return StageResult(logits=self._decoder.logits(x[batch.sample_rows]))
