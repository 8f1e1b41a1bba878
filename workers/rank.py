"""One rank of a replica, from rendezvous to shutdown. What places it (Ray, a subprocess, a test) does not matter."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import torch
from torch._C._distributed_c10d import TCPStore

from partitioning.checkpoint import open_checkpoint
from partitioning.plan import Plan
from workers.engine import Engine
from workers.observation.memory_use import memory_use
from workers.parallel import ParallelContext, join_store, open_store
from workers.progress import Progress, Pulse
from workers.request import EngineConfig
from workers.runner import Runner
from workers.speculation.draft_model import DraftStage
from workers.speculation.load_draft import load_draft
from workers.step_plan import Kind, StepPlan

_PATIENCE = 1.5  # of ranks that wait for each other: the coordinator's report of a hung step comes before


class Rank:
    """Call `open_store` (rank 0 only), `join`, `load`, then run `engine` (rank 0) or `follow` (the others), `close`."""

    def __init__(self, plan: Plan, rank: int, config: EngineConfig) -> None:
        self._plan, self._rank, self._config = plan, rank, config
        mine = plan.ranks[rank]
        self._device = torch.device(mine.device)
        torch.set_num_threads(mine.threads)
        self._store: TCPStore | None = None
        self._context: ParallelContext | None = None
        self._runner: Runner | None = None
        self._draft: DraftStage | None = None
        self._engine: Engine | None = None
        self.loading_s: float | None = None  # that `load` took

    def open_store(self, host: str) -> int:
        """Rank 0: opens the rendezvous store on `host` and returns its port."""
        self._store = open_store(host, self._config.collective_timeout_s)
        return int(self._store.port)

    def join(self, host: str, port: int, secret: str, address: str | None = None) -> None:
        """Meets the other ranks, which know the same `secret`; returns when all have come. `address` is this rank's
        own, if not `host`.

        Raises:
            Impostor: somebody without the secret is among them.
        """
        timeout = _PATIENCE * self._config.collective_timeout_s
        if self._store is None:
            self._store = join_store(host, port, timeout)
        self._context = ParallelContext(
            self._plan, self._rank, self._store, secret, address or host, self._device, timeout
        )

    def load(self) -> int:
        """Reads this rank's slices; returns the bytes read from the checkpoint."""
        assert self._context is not None, "join first"
        started = perf_counter()
        checkpoint = open_checkpoint(self._plan.model_path)
        try:
            self._runner = Runner(self._plan, self._rank, self._config, checkpoint, self._context, self._device)
            read = 0
            if self._rank == 0:
                self._draft, read = load_draft(
                    self._plan, self._config, self._runner.stage, self._device, self._context.native
                )
            return checkpoint.bytes_read + read
        finally:
            checkpoint.close()
            self.loading_s = perf_counter() - started

    @property
    def engine(self) -> Engine:
        """Rank 0's engine."""
        if self._engine is None:
            assert self._rank == 0
            assert self._runner is not None
            assert self._context is not None
            self._engine = Engine(self._plan, self._config, self._runner, self._context, self._draft)
        return self._engine

    @torch.inference_mode()
    def follow(self) -> None:
        """Other ranks: runs rank 0's StepPlans until it stops.

        Raises:
            CollectiveStalled: another rank is gone.
        """
        assert self._rank > 0
        assert self._runner is not None
        assert self._context is not None
        reports = self._plan.pp > 1 and self._rank == (self._plan.pp - 1) * self._plan.tp
        while (plan := StepPlan.unpack(self._context.receive_plan())).kind is not Kind.STOP:
            if plan.kind is Kind.IDLE:
                continue
            sampled = self._runner.run(plan)
            if reports and sampled is not None and (found := sampled.result()).tokens:
                tokens = torch.tensor(found.tokens, dtype=torch.float32)
                self._context.send_result(torch.cat([tokens, found.logprobs.reshape(-1)]))

    @property
    def running(self) -> Engine | None:
        """Rank 0's engine, if there is one now; for any thread, as what follows."""
        return self._engine

    @property
    def waited_s(self) -> float | None:
        """Seconds that this rank waited for others of its stage in collectives; None where nobody measures that."""
        context = self._context
        return None if context is None else context.stage.waited_s

    def memory(self) -> dict[str, int]:
        """Bytes in use, by kind: of a GPU what torch has handed out and what it holds, else what the process has."""
        used, _ = memory_use(self._device)
        if self._device.type != "cuda":
            return {"resident": used}
        return {"allocated": torch.cuda.memory_allocated(self._device), "reserved": used}

    def pulse(self) -> Pulse:
        """What this rank is doing; for any thread."""
        context = self._context
        pulse = Progress().pulse(0) if context is None else context.pulse()
        used, total = memory_use(self._device)
        return replace(pulse, memory_bytes=used, memory_total_bytes=total)

    def close(self) -> None:
        """Lets go of memory and connections."""
        if self._context is not None:
            self._context.close()
        self._engine = self._draft = self._runner = self._context = self._store = None
