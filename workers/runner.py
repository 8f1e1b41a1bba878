"""Runs StepPlans on one rank."""

from __future__ import annotations

from time import perf_counter

import torch

from partitioning.checkpoint import Checkpoint
from partitioning.plan import Plan
from workers.model.batch import BatchBuilder
from workers.model.load import load_decoder
from workers.parallel import ParallelContext
from workers.request import EngineConfig
from workers.sampling import Sampled, Sampler
from workers.step_plan import StepPlan


class Runner:
    """One rank's decoder, KV cache and sampler.

    `seconds` adds up where the time of its steps went: "batch" (preparing the batch), "forward" (the model, its
    collectives included), "sample".
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
        self._dtype: torch.dtype = getattr(torch, plan.dtype)
        self._decoder = load_decoder(checkpoint, plan, mine, context.stage, config.max_model_len, device)
        self._batches = BatchBuilder(
            config.max_running,
            -(-config.max_model_len // plan.kv_block_size),
            plan.kv_block_size,
            frozenset(plan.model.layer_windows[mine.layers.start : mine.layers.stop]),
            device,
        )
        self._sampler = None
        if self._last:
            self._sampler = Sampler(config.max_running, mine.vocab, plan.model.vocab_size, context.stage, device)
        self.seconds = {"batch": 0.0, "forward": 0.0, "sample": 0.0}

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Sampled | None:
        """One step; the sampled tokens on ranks of the last stage, None elsewhere."""
        started = perf_counter()
        batch = self._batches.build(plan)
        if self._sampler is not None:
            self._sampler.apply(plan)
        built = perf_counter()
        if self._first:
            assert self._decoder.embedding is not None
            x = self._decoder.embedding(batch.tokens)
        else:
            x = self._context.receive_hidden(len(batch.tokens), self._hidden_size, self._dtype)
        x = self._decoder.hidden(x, batch)
        sampled = None
        if self._sampler is None:
            self._context.send_hidden(x)
        logits = None
        if self._sampler is not None and len(batch.sample_rows):
            logits = self._decoder.logits(x[batch.sample_rows])
        forwarded = perf_counter()
        if self._sampler is not None:
            if logits is None:
                sampled = Sampled(torch.empty(0, dtype=torch.int64), torch.empty(0, 1))
            else:
                sampled = self._sampler.sample(logits, batch.sample_slots, batch.sample_positions)
        seconds = self.seconds
        seconds["batch"] += built - started
        seconds["forward"] += forwarded - built
        seconds["sample"] += perf_counter() - forwarded
        return sampled
