"""A storm of faults over a cluster that serves, and what became of every stream.

    python -m tests.chaos.storm --faults 100 --seed 1

needs root (network namespaces) and no GPU. Ctrl-C ends the storm early, with its checks. It ends with 0 when every
stream had exactly its undisturbed tokens, none hung, and nothing is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

from tests.chaos.cluster import Cluster, wait_until
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.network import NoNetworks, machines
from tests.tiny_models import make_tiny
from tests.tiny_tokenizer import add_tiny_tokenizer

_SETTLE_S = 90.0  # until everything that was hurt is well again
_SKIPPED = 77  # exit code: such a network cannot be made here

_SPEC = """
model: {model}
name: storm
tp: 2
replicas: 2
devices: cpu
dtype: float32
max_model_len: 512
kv_cache_tokens: 8192
collective_timeout_s: 4
drain_s: 5
wait_for_devices: 2m
registry_listen: :50052
"""


@dataclass
class Tally:
    """Of one kind of fault: how often, how many streams were under way, and the longest pause after one, in seconds."""

    faults: int = 0
    streams: int = 0
    worst_pause_s: float = 0.0


@dataclass
class Report:
    """`faults` by name; `wrong` describes what should not have happened."""

    seed: int
    seconds: float = 0.0
    streams: int = 0
    tokens: int = 0
    refused: int = 0
    faults: dict[str, Tally] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def table(self) -> str:
        lines = ["| fault | injected | streams under way | worst pause, s |", "|---|---|---|---|"]
        for name, tally in self.faults.items():
            lines.append(f"| {name} | {tally.faults} | {tally.streams} | {tally.worst_pause_s:.1f} |")
        total = sum(tally.faults for tally in self.faults.values())
        lines.append(
            f"\n{total} faults in {self.seconds:.0f} s (seed {self.seed}): {self.streams} streams, {self.tokens:,} "
            f"tokens compared, {self.refused} requests told to come again, {len(self.wrong)} things wrong"
        )
        return "\n".join([*lines, *(f"WRONG: {what}" for what in self.wrong)])


class Storm:
    def __init__(self, cluster: Cluster, faults: int, seed: int, clients: int) -> None:
        # gRPC starts threads when it is first used, which belong to the network that is entered by then.
        from phalanx import AsyncClient
        from tests.chaos.load import Account

        self._cluster, self._faults, self._clients = cluster, faults, clients
        self._dice = random.Random(seed)
        self._account = Account()
        self._client = AsyncClient(cluster.addresses)
        self._eye = AsyncClient(cluster.addresses, timeout=5)
        self._log: list[tuple[float, Fault]] = []
        self._mending: set[asyncio.Task[None]] = set()
        self._report = Report(seed)
        self._enough = asyncio.Event()

    async def rage(self) -> Report:
        from tests.chaos.load import go_on, undisturbed

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._enough.set)
        await self._until_well("at the start")
        expected = await undisturbed(self._client)
        started = monotonic()
        dice = [random.Random(self._dice.random()) for _ in range(self._clients)]
        streams = [asyncio.create_task(go_on(self._client, expected, self._account, one)) for one in dice]
        kinds = [fault for fault in FAULTS if fault.possible(self._cluster)]
        for number in range(self._faults):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), self._dice.uniform(0.1, 1.0))
                break
            # Every kind in turn, in an order that differs from round to round.
            if number % len(kinds) == 0:
                self._dice.shuffle(kinds)
            await self._inject(kinds[number % len(kinds)])
            print(f"\r{number + 1} of {self._faults} faults, {self._account.streams} streams", end="", file=sys.stderr)
        await asyncio.gather(*self._mending)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await self._until_well("after the storm")
        self._report.seconds = monotonic() - started
        self._count()
        await self._client.close()
        await self._eye.close()
        return self._report

    async def _inject(self, fault: Fault) -> None:
        if fault.grave:
            await self._until_well(f"before {fault.name}", idle=False)
        deadline = monotonic() + _SETTLE_S
        while monotonic() < deadline:
            state = await self._state()
            if state is not None:
                mend = await asyncio.to_thread(fault.begin, self._cluster, state, self._dice)
                if mend is not None:
                    break
            await asyncio.sleep(0.2)
        else:
            self._report.wrong.append(f"{fault.name}: nothing to hurt for {_SETTLE_S:.0f} s")
            return
        self._log.append((monotonic(), fault))
        wait = self._dice.uniform(*fault.seconds)

        async def mended() -> None:
            await asyncio.sleep(wait)
            await asyncio.to_thread(mend)

        task = asyncio.create_task(mended())
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)

    async def _state(self):  # type: ignore[no-untyped-def]
        with suppress(Exception):
            return await self._eye.cluster()
        return None

    async def _until_well(self, when: str, idle: bool = True) -> None:
        """Both replicas ready; `idle`: and no KV block held."""
        deadline = monotonic() + _SETTLE_S
        state = None
        while monotonic() < deadline:
            state = await self._state()
            if state is not None and len(state.replicas) == 2 and all(entry.connected for entry in state.replicas):
                loads = [entry.load for entry in state.replicas]
                if not idle or all(not load.running and load.free_blocks == load.total_blocks for load in loads):
                    return
            await asyncio.sleep(0.2)
        self._report.wrong.append(f"not well {when} within {_SETTLE_S:.0f} s: {state}")

    def _count(self) -> None:
        report, account = self._report, self._account
        report.streams, report.tokens, report.refused = account.streams, account.tokens, account.refused
        report.wrong += account.wrong
        report.faults = {fault.name: Tally() for fault in FAULTS if fault.possible(self._cluster)}
        for moment, fault in self._log:
            tally = report.faults[fault.name]
            tally.faults += 1
            tally.streams += sum(span.start <= moment <= span.end for span in account.spans)
        for pause in account.pauses:
            before = [fault for moment, fault in self._log if moment <= pause.end]
            if before:
                tally = report.faults[before[-1].name]
                tally.worst_pause_s = max(tally.worst_pause_s, pause.end - pause.start)


def run(faults: int, seed: int, clients: int = 4) -> Report:
    """A storm from the first machine to the last process.

    Raises:
        NoNetworks: network namespaces cannot be made here.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        head, *nodes, one, other, client = stack.enter_context(machines(["h", "a", "b", "c", "g1", "g2", "me"]))
        model = make_tiny(folder / "model", "llama", bos_token_id=304, eos_token_id=305)
        add_tiny_tokenizer(model)
        spec = folder / "spec.yaml"
        spec.write_text(_SPEC.format(model=model))
        cluster = Cluster(head, nodes, [one, other], folder)
        stack.callback(cluster.stop)
        cluster.start(str(spec))
        client.enter()

        async def rage() -> Report:
            return await Storm(cluster, faults, seed, clients).rage()

        report = asyncio.run(rage())
        report.wrong += _left_behind(cluster)
        return report


def _left_behind(cluster: Cluster) -> list[str]:
    stopped = cluster.phalanx("stop", "storm")
    wrong = [] if stopped.returncode == 0 else [f"phalanx stop failed: {stopped.stderr}"]
    if not wait_until(lambda: not cluster.ranks(), 20):
        wrong.append(f"ranks are left: {cluster.ranks()}")
    if left := cluster.left_in_ray():
        wrong.append(f"Ray still knows: {left}")
    segments = [str(path) for node in cluster.nodes for path in cluster.memory(node).glob("phalanx-*")]
    return [*wrong, f"segments are left: {segments}"] if segments else wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--json", type=Path, help="where to write the report")
    options = parser.parse_args()
    try:
        report = run(options.faults, options.seed, options.clients)
    except NoNetworks as error:
        print(f"no storm here: {error}", file=sys.stderr)
        sys.exit(_SKIPPED)
    print(f"\n{report.table()}")
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1))
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
