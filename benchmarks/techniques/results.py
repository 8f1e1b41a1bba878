"""What was measured so far, in a file that an interrupted run goes on with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.techniques.quality import Quality
from benchmarks.techniques.rows import Row
from benchmarks.techniques.speed import Speed
from partitioning.whole_files import write_whole


@dataclass
class Round:
    """`limits`: the machine's, as benchmarks.limits tells. `others`: how many cores other programs used before each
    row."""

    limits: dict[str, float]
    speeds: dict[str, Speed] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)


@dataclass
class Results:
    """Of one model and so many questions. `qualities` by a row's way; `continued`, the greedy tokens, and speeds by its
    key."""

    model: str
    questions: int
    qualities: dict[str, Quality] = field(default_factory=dict)
    continued: dict[str, list[list[int]]] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)

    @classmethod
    def load(cls, file: Path, model: str, questions: int) -> Results:
        """Raises ValueError where the file is of another model, or of other questions."""
        if not file.exists():
            return cls(model, questions)
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if (fields["model"], fields["questions"]) != (model, questions):
            raise ValueError(
                f"{file} has results of {fields['model']} and {fields['questions']} questions, not of {model} and "
                f"{questions}: name another --out"
            )
        rounds = [
            Round(one["limits"], {name: Speed(**speed) for name, speed in one["speeds"].items()}, one["others"])
            for one in fields["rounds"]
        ]
        qualities = {way: Quality(**own) for way, own in fields["qualities"].items()}
        return cls(model, questions, qualities, fields["continued"], rounds)

    def save(self, file: Path) -> None:
        write_whole(file, f"{json.dumps(asdict(self))}\n".encode())

    def median(self, row: Row, key: str) -> float | None:
        """Over the rounds; None where the row was not measured, or the machine does not say."""
        values = [getattr(one.speeds[row.key], key) for one in self.rounds if row.key in one.speeds]
        return median(values) if values and None not in values else None

    def ratio(self, row: Row, base: Row, key: str) -> float | None:
        """The median of the row's figure over the base's in the same round."""
        both = [one.speeds for one in self.rounds if {row.key, base.key} <= set(one.speeds)]
        return median(getattr(one[row.key], key) / getattr(one[base.key], key) for one in both) if both else None
