"""Seconds from `phalanx serve` to the first token, with a warm cache: python -m benchmarks.startup MODEL [--tp N]

Each start is a deployment of its own with its own Ray, unless RAY_ADDRESS names a cluster. The first one warms the
caches and is not counted.
"""

from __future__ import annotations

from statistics import median
from time import monotonic

import typer

from benchmarks.deployment import serving
from benchmarks.verdict import Verdict
from phalanx import Client

_TARGET_S = 6.0


def main(model: str, tp: int = 2, repeat: int = 3) -> None:
    times = []
    for number in range(repeat + 1):
        times.append(_first_token(model, tp))
        print(f"{times[-1]:.2f} s{'' if number else ', not counted'}", flush=True)
    print(Verdict(f"phalanx serve {model} --tp {tp} to first token", median(times[1:]), at_most=_TARGET_S, unit="s"))


def _first_token(model: str, tp: int) -> float:
    started = monotonic()
    with serving([model, "--tp", str(tp)]) as address:
        with Client(address) as client:
            next(iter(client.stream("The capital of France is", max_tokens=1)))
        return monotonic() - started


if __name__ == "__main__":
    typer.run(main)
