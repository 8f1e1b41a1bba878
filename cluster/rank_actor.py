"""The Ray actor around one rank. Ray starts it and notices its death; no step passes through Ray."""

from __future__ import annotations

import dataclasses
import json
import os

import ray

from partitioning.plan_json import plan_from_json
from workers.rank import Rank
from workers.request import EngineConfig
from workers.service import EngineService


class RankActor:
    """Rank `rank` of a plan. `run` blocks, so the actor needs a second thread for `stop`."""

    def __init__(self, plan_json: str, engine_json: str, rank: int) -> None:
        plan = plan_from_json(plan_json)
        mine = plan.ranks[rank]
        if mine.device.startswith("cuda"):
            # Ray shows this process its own GPU alone.
            ranks = list(plan.ranks)
            ranks[rank] = dataclasses.replace(mine, device="cuda:0")
            plan = dataclasses.replace(plan, ranks=tuple(ranks))
        fields = json.loads(engine_json)
        config = EngineConfig(**{**fields, "eos_token_ids": tuple(fields["eos_token_ids"])})
        self._rank = Rank(plan, rank, config)
        self._service: EngineService | None = None

    def where(self) -> tuple[str, int]:
        """This node's address, and the process id."""
        return ray.util.get_node_ip_address(), os.getpid()

    def open_store(self, host: str) -> int:
        return self._rank.open_store(host)

    def join(self, host: str, port: int, epoch_key: str, address: str) -> None:
        self._rank.join(host, port, epoch_key, address)

    def load(self) -> int:
        return self._rank.load()

    def serve(self, host: str) -> int:
        """Rank 0: generates a first token, then listens on `host`; returns the port."""
        self._service = EngineService(self._rank.engine)
        return self._service.start(host)

    def run(self) -> None:
        """Blocks while the replica lives. Raises what ended it."""
        if self._service is None:
            self._rank.follow()
        else:
            self._service.wait()
        self._rank.close()

    def stop(self) -> None:
        """Rank 0: lets every rank return from `run`."""
        assert self._service is not None
        self._service.stop()
