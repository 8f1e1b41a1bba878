"""A whole replica on this machine, without Ray: rank 0 in this process, the others in processes of their own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from partitioning.plan import Plan
from partitioning.plan_json import plan_from_json, plan_to_json
from workers.engine import Engine, EngineFull, EngineStopped
from workers.garbage import spare_nothing, spare_what_stays
from workers.rank import Rank
from workers.request import EngineConfig, Output, Request
from workers.security.secret import new_secret

_ROOT = Path(__file__).resolve().parent.parent
_LOOPBACK = "127.0.0.1"
_EXIT_S = 10.0


class LocalReplica:
    """A running replica; `engine` is its rank 0."""

    def __init__(self, engine: Engine, followers: Sequence[subprocess.Popen[str]]) -> None:
        self.engine = engine
        self._followers = followers
        self._outputs: queue.SimpleQueue[list[Output] | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def generate(self, requests: Sequence[Request]) -> Iterator[Output]:
        """Yields the outputs of all requests as they come, until each has finished.

        Raises:
            ValueError: a request that can never run.
            CollectiveStalled: a rank died.
        """
        pending = list(reversed(requests))
        unfinished = {request.key for request in requests}
        try:
            while unfinished:
                self._submit(pending)
                outputs = self._next()
                for output in outputs:
                    if output.finish_reason is not None:
                        unfinished.discard(output.key)
                    yield output
        finally:
            for key in unfinished:
                self.engine.cancel(key)

    def stop(self) -> None:
        self.engine.stop()
        self._thread.join()

    def _submit(self, pending: list[Request]) -> None:
        while pending:
            try:
                self.engine.submit(pending[-1])
            except (EngineFull, EngineStopped):
                return  # later, or never: what ended the engine comes as its last news
            pending.pop()

    def _next(self) -> list[Output]:
        while True:
            try:
                news = self._outputs.get(timeout=1.0)
            except queue.Empty:
                for rank, follower in enumerate(self._followers, start=1):
                    if follower.poll() is not None:
                        self.engine.abort()
                        raise RuntimeError(f"rank {rank} ended with exit code {follower.returncode}") from None
                continue
            if isinstance(news, BaseException):
                raise news
            return news

    def _run(self) -> None:
        try:
            self.engine.run(self._outputs.put)
            self._outputs.put(EngineStopped("the replica was stopped"))
        except BaseException as error:
            self._outputs.put(error)


@contextmanager
def local_replica(plan: Plan, config: EngineConfig) -> Iterator[LocalReplica]:
    """Starts the ranks of `plan` here, loads the model, and stops everything at the end.

    Raises:
        RuntimeError: a rank could not start; its own error is on standard error.
    """
    with ExitStack() as stack:
        rank = Rank(plan, 0, config)
        stack.callback(spare_nothing)
        stack.callback(rank.close)
        port = rank.open_store(_LOOPBACK)
        secret = new_secret()
        followers = []
        for number in range(1, len(plan.ranks)):
            follower = _spawn(plan, number, config, port, secret)
            stack.callback(_reap, follower)
            followers.append(follower)
        rank.join(_LOOPBACK, port, secret)
        rank.load()
        spare_what_stays()
        replica = LocalReplica(rank.engine, followers)
        stack.callback(replica.stop)
        yield replica


def _spawn(plan: Plan, rank: int, config: EngineConfig, port: int, secret: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.local"],
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(plan.ranks[rank].threads)},
        # Its own group: a Ctrl-C is for this process, which then stops the ranks in order.
        start_new_session=True,
    )
    assert process.stdin is not None
    job = {"plan": plan_to_json(plan), "rank": rank, "config": asdict(config), "port": port, "secret": secret}
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    return process


def _reap(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _follow() -> None:
    """The body of a follower process: its job comes as one line of JSON; the end of that stream is the end of it."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    rank = Rank(plan_from_json(job["plan"]), job["rank"], EngineConfig.of(job["config"]))
    rank.join(_LOOPBACK, job["port"], job["secret"])
    rank.load()
    spare_what_stays()
    rank.follow()
    rank.close()


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    _follow()
