"""Rank 0 of a served replica: the engine's loop and its network side, each in a thread of its own."""

from __future__ import annotations

import asyncio
import threading

from workers.engine import Engine
from workers.observation.traces import Traces
from workers.request import EngineLoad, Output, Request, SamplingParams
from workers.security.peers import PeerTls
from workers.server import ReplicaServer

_WARM_UP = SamplingParams(max_tokens=2, ignore_eos=True)
_WARM_UP_KEY = 0  # the server counts its keys from 1


class EngineService:
    """Serves gateways that show `secret`. Call `start`; then `wait` returns or raises when the engine has ended.
    `traces` gets the spans of requests that are traced."""

    def __init__(self, engine: Engine, secret: str, tls: PeerTls | None = None, traces: Traces | None = None) -> None:
        self._engine = engine
        self._traces = traces
        self._server = ReplicaServer(engine, secret, tls, traces)
        self._loop = asyncio.new_event_loop()
        self._warm = threading.Event()
        self._failure: BaseException | None = None
        self._network = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._steps = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, host: str, port: int = 0) -> int:
        """Generates the first tokens on every rank, then listens on host:port; returns the port.

        Raises:
            CollectiveStalled: a rank is gone.
            SecurityError: the certificates cannot be used.
            RuntimeError: the address cannot be listened on.
        """
        self._steps.start()
        self._engine.submit(Request(_WARM_UP_KEY, (0,), 1, _WARM_UP))
        self._warm.wait()
        if self._failure is not None:
            raise self._failure
        self._network.start()
        return asyncio.run_coroutine_threadsafe(self._server.start(host, port), self._loop).result()

    def wait(self) -> None:
        """Blocks until the engine ends, by `stop` or by an error, which is raised."""
        self._steps.join()
        if self._network.is_alive():
            asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._network.join()
        if self._traces is not None:
            self._traces.close()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ends the engine after the steps in flight."""
        self._engine.stop()

    def announce(self, registry: str) -> None:
        """Tells gateways where the coordinator's registry is now."""
        self._server.announce(registry)

    def load(self) -> EngineLoad:
        return self._engine.load()

    def _run(self) -> None:
        try:
            self._engine.run(self._on_outputs)
        except BaseException as error:
            self._failure = error
        finally:
            self._warm.set()

    def _on_outputs(self, outputs: list[Output]) -> None:
        if self._warm.is_set():
            self._server.on_outputs(outputs)
        elif any(output.finish_reason is not None for output in outputs):
            self._warm.set()
