"""Runs StepPlans on one rank."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch

from partitioning.checkpoint import Checkpoint
from partitioning.plan import Plan
from workers.collectives import Group
from workers.model.devices import kernels_for
from workers.model.stage import Stage, TorchStage
from workers.model.weights import WeightReader
from workers.native import stage as native
from workers.native.library import library
from workers.observation.measures import Durations
from workers.parallel import ParallelContext
from workers.request import EngineConfig
from workers.sampling import NOTHING_SAMPLED, Drawn, Sampled, Sampler
from workers.step_plan import StepPlan

_NOTHING = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)


def make_stage(
    plan: Plan,
    rank: int,
    config: EngineConfig,
    checkpoint: Checkpoint,
    group: Group,
    device: torch.device,
    all_native: bool,
    beside: Stage | None = None,
) -> Stage:
    """The stage of `rank` of `plan`, with its weights: the native one where it can be had and every rank has the
    library. It runs by turns with the stage `beside` it, if there is one, in the same process."""
    weights = WeightReader(checkpoint, plan, plan.ranks[rank])
    if all_native and (built := library()) is not None and native.supports(plan, device):
        other = beside if isinstance(beside, native.NativeStage) else None
        return native.NativeStage(built, weights, plan, plan.ranks[rank], config, group, other)
    kernels = kernels_for(plan, plan.ranks[rank], device)
    return TorchStage(weights, plan, plan.ranks[rank], config, group, device, kernels)


class Runner:
    """One rank's stage and sampler.

    `looks_ahead`: a step may follow before the tokens of the one before it are known. `parts` has where the time of its
    steps went: "forward" (the stage, its collectives included), "sample"; of devices that compute while the process
    goes on, the time to give them work.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        config: EngineConfig,
        checkpoint: Checkpoint,
        context: ParallelContext,
        device: torch.device,
    ) -> None:
        mine = plan.ranks[rank]
        self._context = context
        self._first, self._last = mine.stage == 0, mine.stage == plan.pp - 1
        self._hidden_size = plan.model.hidden_size
        self.stage = make_stage(plan, rank, config, checkpoint, context.stage, device, context.native)
        last_tokens = self.stage.last_tokens if plan.pp == 1 else None
        self.looks_ahead = last_tokens is not None
        self._sampler = None
        if self._last:
            self._sampler = Sampler(
                config.max_running, mine.vocab, context.stage, device, self.stage.drawing, last_tokens
            )
        self.parts = {"forward": Durations(), "sample": Durations()}

    def run(self, plan: StepPlan) -> Sampled | Drawn | None:
        """One step; the sampled tokens on ranks of the last stage, None elsewhere. For callers in inference mode, which
        takes too long to enter for every step."""
        started = perf_counter()
        progress = self._context.progress
        progress.step = plan.step
        sampler, draws, (slots, positions) = self._sampler, None, _NOTHING
        if sampler is not None:
            sampler.apply(plan)
            slots, positions = plan.samples()
            draws = sampler.draws(slots, positions)
        hidden = None if self._first else self._context.receive_hidden(len(plan.tokens), self._hidden_size)
        prepared = perf_counter()
        progress.begin("computing")
        result = self.stage.run(plan, hidden, draws)
        if result.hidden is not None:
            progress.begin("handing on to the next stage")
            self._context.send_hidden(result.hidden)
        forwarded = perf_counter()
        sampled: Sampled | Drawn | None = None
        if sampler is not None:
            progress.begin("sampling")
            if not len(slots):
                sampled = NOTHING_SAMPLED
            elif result.best is not None:
                sampled = sampler.choose(*result.best)
            else:
                assert result.logits is not None
                sampled = sampler.sample(result.logits, slots, positions)
        self.parts["forward"].add(forwarded - prepared)
        self.parts["sample"].add(perf_counter() - forwarded + prepared - started)
        return sampled
