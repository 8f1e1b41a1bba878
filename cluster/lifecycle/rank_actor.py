"""The Ray actor around one rank. Ray starts it and ends it; no step passes through Ray."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import ray
from prometheus_client import generate_latest

from partitioning.plan_json import plan_from_json
from workers.garbage import spare_what_stays
from workers.lifeline import Lifeline
from workers.observation.log import LogConfig, set_up
from workers.observation.metrics import RankMetrics
from workers.observation.traces import Traces
from workers.request import EngineConfig, EngineLoad
from workers.security.peers import PeerTls
from workers.security.secret import derived

if TYPE_CHECKING:
    from workers.service import EngineService

log = logging.getLogger(__name__)

# What parts of an epoch's secret are for.
LINK, LIFELINE = "link", "lifeline"
_BEATS = 8  # signs of life within the deadline of a step


class RankActor:
    """Rank `rank` of a plan, of that epoch of a replica. `secret` is what the epoch's processes know each other by,
    `traces` where rank 0 sends spans, if anywhere."""

    def __init__(
        self,
        plan_json: str,
        engine_json: str,
        rank: int,
        secret: str,
        tls: PeerTls | None,
        logs: LogConfig,
        replica: int,
        epoch: int,
        traces: str | None,
    ) -> None:
        set_up(logs, "rank", replica=replica, epoch=epoch, rank=rank)
        from workers.rank import Rank  # torch takes a second to import, which the coordinator need not

        plan = plan_from_json(plan_json)
        mine = plan.ranks[rank]
        if mine.device.startswith("cuda"):
            # Ray shows this process its own GPU alone.
            ranks = list(plan.ranks)
            ranks[rank] = dataclasses.replace(mine, device="cuda:0")
            plan = dataclasses.replace(plan, ranks=tuple(ranks))
        self._config = EngineConfig.of(json.loads(engine_json))
        self._secret, self._tls = secret, tls
        self._traces, self._instance = traces, f"replica-{replica}-epoch-{epoch}"
        self._rank = Rank(plan, rank, self._config)
        self._metrics = RankMetrics(self._rank, rank)
        self._service: EngineService | None = None
        self._lifeline: Lifeline | None = None

    def where(self) -> tuple[str, int]:
        """This node's address, and the process id."""
        return ray.util.get_node_ip_address(), os.getpid()

    def lifeline(self, host: str) -> int:
        """The port on `host` of this rank's lifeline."""
        if self._lifeline is None:
            interval = min(self._config.collective_timeout_s / _BEATS, 1.0)
            self._lifeline = Lifeline(host, derived(self._secret, LIFELINE), self._rank.pulse, interval)
        return self._lifeline.port

    def open_store(self, host: str) -> int:
        return self._rank.open_store(host)

    def join(self, host: str, port: int, address: str) -> None:
        self._rank.join(host, port, self._secret, address)

    def load(self) -> int:
        read = self._rank.load()
        spare_what_stays()
        log.info("weights loaded", extra={"bytes": read, "seconds": round(self._rank.loading_s or 0.0, 3)})
        return read

    def follow(self) -> None:
        """Other ranks: begins to work; the lifeline tells of the end."""
        threading.Thread(target=self._work, args=(self._rank.follow,), name="rank", daemon=True).start()

    def serve(self, host: str) -> int:
        """Rank 0: generates a first token, then listens on `host`; returns the port. The lifeline tells of the end."""
        from workers.service import EngineService

        traces = None if self._traces is None else Traces(self._traces, "phalanx-replica", self._instance)
        self._service = EngineService(self._rank.engine, derived(self._secret, LINK), self._tls, traces)
        port = self._service.start(host)
        log.info("serving", extra={"address": f"{host}:{port}"})
        threading.Thread(target=self._work, args=(self._service.wait,), name="rank", daemon=True).start()
        return port

    def announce(self, registry: str) -> None:
        """Rank 0: tells gateways where the coordinator's registry is now."""
        assert self._service is not None
        self._service.announce(registry)

    def metrics(self) -> str:
        """What this rank tells of itself, in Prometheus' text format."""
        return generate_latest(self._metrics).decode()

    def busy(self) -> EngineLoad:
        """Rank 0: what it is working on."""
        assert self._service is not None
        return self._service.load()

    def stop(self) -> None:
        """Rank 0: lets the work of every rank end."""
        assert self._service is not None
        self._service.stop()

    def _work(self, work: Callable[[], None]) -> None:
        assert self._lifeline is not None
        try:
            work()
            self._rank.close()
            log.info("rank ended")
            self._lifeline.end("")
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            log.error("rank ended", extra={"error": reason})
            self._lifeline.end(reason)
