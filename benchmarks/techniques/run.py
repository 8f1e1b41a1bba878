"""One run: what the results lack is measured, row by row."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
from tqdm import tqdm

from benchmarks.techniques.checkpoints import Checkpoints
from benchmarks.techniques.choice import smallest_within
from benchmarks.techniques.engine import plan_of
from benchmarks.techniques.quality import Qualities, Quality
from benchmarks.techniques.results import Results, Round
from benchmarks.techniques.rows import BASELINE, BUDGET, Row
from benchmarks.techniques.speed import Speed

_ROOT = Path(__file__).resolve().parent.parent.parent


class Run:
    """Measures what the results lack, and saves after each row."""

    def __init__(
        self, results: Results, file: Path, checkpoints: Checkpoints, measured: Qualities, threads: int
    ) -> None:
        self._results, self._file, self._checkpoints = results, file, checkpoints
        self._measured, self._threads = measured, threads

    def qualities(self, rows: list[Row]) -> list[Row]:
        """Of all rows; these are returned with what the budget has chosen."""
        base = next(row for row in rows if row.name == BASELINE)
        found = []
        for row in tqdm(rows, desc="accuracy", unit="row"):
            if row.within_budget:
                chosen = smallest_within(rows, BUDGET, self._quality(base), self._quality, self._weight_bytes)
                if chosen is None:
                    print(f"no row keeps the budget, so there is no {row.name}", file=sys.stderr)
                    continue
                row = row.like(chosen)
            self._quality(row)
            if row.key not in self._results.continued:
                self._results.continued[row.key] = self._measured.continued(row, self._path(row))
                self._results.save(self._file)
            found.append(row)
        return found

    def round(self, number: int, rows: list[Row]) -> None:
        if number == len(self._results.rounds):
            self._results.rounds.append(Round(_printed("benchmarks.limits", str(self._threads))))
        own = self._results.rounds[number]
        for row in tqdm(rows, desc=f"speed, round {number + 1}", unit="row"):
            if row.key not in own.speeds:
                job = json.dumps({**asdict(row), "path": str(self._path(row)), "threads": self._threads})
                own.others[row.key] = psutil.cpu_percent(interval=1.0) / 100 * (psutil.cpu_count() or 1)
                own.speeds[row.key] = Speed(**_printed("benchmarks.techniques.speed", job))
                self._results.save(self._file)

    def _quality(self, row: Row) -> Quality:
        if row.way not in self._results.qualities:
            self._results.qualities[row.way] = self._measured.of(row, self._path(row))
            self._results.save(self._file)
        return self._results.qualities[row.way]

    def _weight_bytes(self, row: Row) -> int:
        plan = plan_of(row, self._path(row), self._threads, 256, 256)
        return sum(rank.weight_bytes for rank in plan.ranks)

    def _path(self, row: Row) -> Path:
        return self._checkpoints.path(row.checkpoint)


def _printed(module: str, *arguments: str) -> dict[str, float]:
    """What a module prints, in a process of its own: peak memory is a process's."""
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
    printed: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return printed
