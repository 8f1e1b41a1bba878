"""What objectives bring when requests come in bursts: python -m benchmarks.goodput MODEL --rate 6 [--ttft 1]

The same requests (those of benchmarks/load.py) go to a deployment without objectives and to one with them, by turns,
each started anew. Goodput counts the tokens of outputs that kept both objectives.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
import yaml

from benchmarks.deployment import serving
from benchmarks.load import Load, run
from benchmarks.load_report import Objective, Row, rows, table

_PATIENCE_S = 300.0


def main(
    model: str,
    rate: Annotated[float, typer.Option(help="Requests a second, on average.")],
    bursts: Annotated[float, typer.Option(min=1, max=5, help="Times the rate in 2 of every 10 seconds.")] = 4.0,
    ttft: Annotated[float, typer.Option(help="Seconds.")] = 1.0,
    tpot: Annotated[float, typer.Option(help="Seconds.")] = 0.05,
    duration: float = 40.0,
    prompt_tokens: int = 256,
    output_tokens: int = 64,
    tp: int = 1,
    rounds: int = 3,
) -> None:
    objective = Objective(ttft, tpot)
    spec = {"name": "goodput", "model": model, "tp": tp, "dtype": "bfloat16", "weights": "dense"}
    kinds = {"without objectives": spec, "with objectives": spec | {"objectives": {"ttft": ttft, "tpot": tpot}}}
    found: dict[str, list[Row]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        load = Load(rate, duration, {"": 1}, prompt_tokens, output_tokens, 0.0, 0, number, bursts)
        for kind, contents in kinds.items():
            found[kind].append(_row(contents, load, objective))
            print(f"round {number + 1} of {rounds}, {kind}:\n{table(found[kind][-1:])}", flush=True)
    goodput = {kind: [row.goodput_tokens_per_s for row in entries] for kind, entries in found.items()}
    for kind, values in goodput.items():
        print(
            f"{kind}: {median(values):.0f} tok/s of goodput (median of {', '.join(f'{value:.0f}' for value in values)})"
        )
    without, with_them = goodput.values()
    ratio = median(with_them) / median(without) if median(without) else float("inf")
    print(f"with / without: {ratio:.2f}")


def _row(spec: dict[str, object], load: Load, objective: Objective) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(yaml.safe_dump(spec), encoding="utf-8")
        with serving([str(path)]) as address:
            warm_up = Load(1.0, 3.0, {"": 1}, load.prompt_tokens, 8, 0.0, 0, seed=99)
            asyncio.run(run(address, warm_up, None, _PATIENCE_S))
            outcomes, seconds = asyncio.run(run(address, load, None, _PATIENCE_S))
    (row,) = rows(outcomes, objective, seconds)
    return row


if __name__ == "__main__":
    typer.run(main)
