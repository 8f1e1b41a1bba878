"""The whole of a distillation, from a text to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from partitioning.checkpoint import Checkpoint
from partitioning.checkpoint.files import read_json_object
from partitioning.distil.decoder import read_decoder
from partitioning.distil.measure import Reading, measured
from partitioning.distil.plot import loss_plot
from partitioning.distil.saved import LOG, Folder
from partitioning.distil.settings import Settings
from partitioning.distil.student import Student
from partitioning.distil.teacher import Teacher
from partitioning.distil.train import Step, Training
from partitioning.distil.windows import Windows
from partitioning.distil.workers import ALONE, Workers


@dataclass(frozen=True)
class Outcome:
    before: Reading
    after: Reading
    steps: int

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """Of the finished distillation in `folder`."""
        log = read_json_object(folder / LOG)
        return cls(Reading(**log["before"]), Reading(**log["after"]), len(log["steps"]))


def distil(
    checkpoint: Checkpoint,
    source: Path,
    student: Student,
    windows: Windows,
    settings: Settings,
    folder: Folder,
    on_step: Callable[[Step], None],
    stop: Callable[[], bool],
    workers: Workers = ALONE,
) -> Outcome:
    """Trains `student` to predict as `checkpoint`, which `source` holds, and leaves a checkpoint in `folder`. All of
    `workers` call this, and `stop` has to say the same in all of them.

    Raises:
        Interrupted: `stop` said so; the same call goes on.
    """
    teacher = Teacher(
        read_decoder(checkpoint, settings.dtype, settings.device), windows, folder.unfinished, workers.rank
    )
    training = Training(student, teacher, windows, settings, folder, workers)
    if training.before is None:
        training.before = asdict(measured(training.decoder, teacher, windows))
    training.run(on_step, stop)
    after = measured(training.decoder, teacher, windows)
    outcome = Outcome(Reading(**training.before), after, training.done)
    if workers.rank > 0:
        return outcome
    log = {
        "settings": settings.model_dump(),
        "text": {"learned": len(windows.learned), "held_out": len(windows.held_out), "window": settings.window},
        "before": training.before,
        "after": asdict(after),
        "steps": training.log,
    }
    dtype: torch.dtype = getattr(torch, student.spec.dtype)
    # What is frozen was computed with in `settings.dtype`, but is the teacher's to the bit.
    tensors = {name: tensor.to(dtype) for name, tensor in {**student.tensors, **training.trained()}.items()}
    folder.finish(tensors, student.config, source, log, loss_plot([step["loss"] for step in training.log]))
    return outcome
