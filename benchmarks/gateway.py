"""TTFT, TPOT and throughput of a deployment that runs, as its clients see them: through gRPC, gateway and all.

python -m benchmarks.gateway [ADDRESS] [--repeat N] [--json]

The workloads are those of benchmarks/serve.py, so the difference between the two is what the way there and back costs.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict
from random import randrange
from time import perf_counter
from typing import Annotated

import typer

from benchmarks.workload import WORKLOADS, Measurement, Times, Workload, measure, summary
from phalanx import AsyncClient


def main(
    address: Annotated[str, typer.Argument(metavar="ADDRESS")] = "127.0.0.1:50051",
    repeat: int = 3,
    json: Annotated[bool, typer.Option("--json", help="One JSON line for each measurement.")] = False,
) -> None:
    asyncio.run(_run(address, repeat, json))


async def _run(address: str, repeat: int, json: bool) -> None:
    async with AsyncClient(address) as client:
        vocab_size = (await client.model()).vocab_size
        warm_up = randrange(1 << 30)  # the deployment may still have the prompts of an earlier run in its cache
        for workload in WORKLOADS:
            await _one(client, workload, warm_up, vocab_size)
            repetitions = range(warm_up + 1, warm_up + 1 + repeat)
            results = [await _one(client, workload, number, vocab_size) for number in repetitions]
            for line in [jsonlib.dumps(asdict(result)) for result in results] if json else [summary(results)]:
                print(line, flush=True)


async def _one(client: AsyncClient, workload: Workload, repetition: int, vocab_size: int) -> Measurement:
    return measure(workload, await _generate(client, workload, workload.token_ids(repetition, vocab_size)))


async def _generate(client: AsyncClient, workload: Workload, prompts: Sequence[Sequence[int]]) -> Times:
    started = perf_counter()

    async def one(prompt: Sequence[int]) -> list[float]:
        times: list[float] = []
        async for chunk in client.stream(prompt, max_tokens=workload.output_tokens, ignore_eos=True):
            times += [perf_counter() - started] * len(chunk.token_ids)
        return times

    return await asyncio.gather(*map(one, prompts))


if __name__ == "__main__":
    typer.run(main)
