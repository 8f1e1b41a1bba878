"""Loads a deployment that runs with requests that come whether it keeps up or not, and says how each tenant fared.

python -m benchmarks.load [ADDRESS] --rate 4 --duration 60 [--tenants a:1,b:3 --tokens FOLDER]
    [--prompt-tokens N] [--output-tokens N] [--slow SHARE] [--flood N] [--bursts TIMES] [--ttft-ms N] [--tpot-ms N]
    [--json]

Arrivals are a Poisson process (open loop: nobody waits for an answer before the next asks), in a fifth of every ten
seconds `bursts` times as many as on average, and divided among the tenants in the proportions given; a tenant's weight
is what its token in FOLDER/TENANT has. Lengths of prompts and outputs are uniform between half and one and a half times
what is asked for. Slow readers take a second for every message. A flood is so many requests of the first tenant at
once, after a third of the time. Who is refused does not come again.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from benchmarks.load_report import Objective, Outcome, rows, table
from phalanx import AsyncClient, Overloaded, PhalanxError

_SLOW_S = 1.0  # that a slow reader takes for each message
_BURST_EVERY_S, _BURST_SHARE = 10.0, 0.2


@dataclass(frozen=True)
class Arrival:
    """A request to come: `at` seconds from the start."""

    at: float
    tenant: str
    prompt: list[int]
    output_tokens: int
    slow: bool


@dataclass(frozen=True)
class Load:
    """`rate` requests a second for `duration` seconds, divided by the tenants' parts; `slow` is a share of them."""

    rate: float
    duration: float
    tenants: dict[str, float]
    prompt_tokens: int
    output_tokens: int
    slow: float
    flood: int
    seed: int
    bursts: float = 1.0

    def arrivals(self, vocab_size: int) -> Iterator[Arrival]:
        """In the order of their times, the same for the same seed."""
        rng = random.Random(self.seed)
        names, parts = list(self.tenants), list(self.tenants.values())
        flood_at = self.duration / 3 if self.flood else float("inf")
        at = 0.0
        while (at := at + rng.expovariate(self.rate * self.bursts)) < self.duration:
            if rng.random() * self.bursts > self._times(at):
                continue
            if at > flood_at:
                yield from (self._arrival(rng, flood_at, names[0], vocab_size) for _ in range(self.flood))
                flood_at = float("inf")
            yield self._arrival(rng, at, rng.choices(names, parts)[0], vocab_size)

    def _times(self, at: float) -> float:
        """How many times the mean rate requests come at that moment."""
        if at % _BURST_EVERY_S < _BURST_SHARE * _BURST_EVERY_S:
            return self.bursts
        return (1 - _BURST_SHARE * self.bursts) / (1 - _BURST_SHARE)

    def _arrival(self, rng: random.Random, at: float, tenant: str, vocab_size: int) -> Arrival:
        prompt = [rng.randrange(100, vocab_size) for _ in range(_about(rng, self.prompt_tokens))]
        return Arrival(at, tenant, prompt, _about(rng, self.output_tokens), rng.random() < self.slow)


def main(
    address: Annotated[str, typer.Argument(metavar="ADDRESS")] = "127.0.0.1:50051",
    rate: Annotated[float, typer.Option(help="Requests a second, of all tenants.")] = 2.0,
    duration: Annotated[float, typer.Option(help="Seconds in which requests come.")] = 60.0,
    tenants: Annotated[str, typer.Option(help="Names and parts of the requests, such as a:1,b:3.")] = ":1",
    tokens: Annotated[Path | None, typer.Option(help="A folder with a file for each tenant: its token.")] = None,
    prompt_tokens: int = 128,
    output_tokens: int = 64,
    slow: Annotated[float, typer.Option(help="Share of requests whose readers are slow.")] = 0.0,
    flood: Annotated[int, typer.Option(help="Requests at once, after a third of the time.")] = 0,
    bursts: Annotated[float, typer.Option(min=1, max=5, help="Times the rate in 2 of every 10 seconds.")] = 1.0,
    ttft_ms: Annotated[float, typer.Option(help="Goodput: the latest first token.")] = 2000.0,
    tpot_ms: Annotated[float, typer.Option(help="Goodput: the longest mean time between tokens.")] = 200.0,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 300.0,
    seed: int = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON line for each tenant.")] = False,
) -> None:
    parts = dict(_part(entry) for entry in tenants.split(","))
    load = Load(rate, duration, parts, prompt_tokens, output_tokens, slow, flood, seed, bursts)
    outcomes, seconds = asyncio.run(run(address, load, tokens, timeout))
    found = rows(outcomes, Objective(ttft_ms / 1000, tpot_ms / 1000), seconds)
    print("\n".join(jsonlib.dumps(row.as_json()) for row in found) if json else table(found))


async def run(address: str, load: Load, tokens: Path | None, timeout: float) -> tuple[list[Outcome], float]:
    """Every request's outcome, and the seconds until the last had its answer."""
    async with AsyncExitStack() as stack:
        clients = {}
        for tenant in load.tenants:
            token = None if tokens is None else (tokens / tenant).read_text(encoding="utf-8").strip()
            clients[tenant] = await stack.enter_async_context(AsyncClient(address, timeout, token=token))
        arrivals = list(load.arrivals((await next(iter(clients.values())).model()).vocab_size))
        started = perf_counter()
        asked = []
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, started + arrival.at - perf_counter()))
            asked.append(asyncio.ensure_future(_ask(clients[arrival.tenant], arrival)))
        outcomes = await asyncio.gather(*asked)
        return list(outcomes), perf_counter() - started


async def _ask(client: AsyncClient, arrival: Arrival) -> Outcome:
    sent = perf_counter()
    ended, count = "done", 0
    first = last = 0.0
    try:
        async for chunk in client.stream(arrival.prompt, max_tokens=arrival.output_tokens, ignore_eos=True):
            last = perf_counter()
            if chunk.token_ids and not count:
                first = last
            count += len(chunk.token_ids)
            if arrival.slow:
                await asyncio.sleep(_SLOW_S)
    except Overloaded:
        ended = "refused"
    except PhalanxError as error:
        ended = type(error).__name__
    return Outcome(
        arrival.tenant,
        arrival.slow,
        ended,
        count,
        first - sent if count else None,
        (last - first) / (count - 1) if count > 1 else None,
        perf_counter() - sent,
    )


def _part(entry: str) -> tuple[str, float]:
    name, _, part = entry.partition(":")
    try:
        return name, float(part or 1)
    except ValueError:
        raise typer.BadParameter(f"{entry} is no tenant: write NAME:PART, as in a:1,b:3") from None


def _about(rng: random.Random, tokens: int) -> int:
    return rng.randint(max(1, tokens // 2), max(1, tokens * 3 // 2))


if __name__ == "__main__":
    typer.run(main)
