"""A distillation by several processes of a Ray cluster: a Ray Train job. Needs the extra `train`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from cluster.lifecycle import actor_lines
from cluster.lifecycle.ray_cluster import Say, join_or_start
from partitioning.distil.settings import DistilError, Settings
from partitioning.whole_files import write_whole

if TYPE_CHECKING:
    from partitioning.distil.train import Step

_LOOK_EVERY_S = 1.0
_MOST_FAILURES = 3


@dataclass(frozen=True)
class Job:
    """Paths have to be on disks that all nodes share; `identity` is the one `out` was begun with."""

    teacher: Path
    layers: int | None
    student: Path | None
    settings: Settings
    out: Path
    identity: Mapping[str, Any]


def train(job: Job, text: Sequence[int], workers: int, threads: int, say: Say, on_step: Callable[[Step], None]) -> None:
    """Trains by `workers` processes of `threads` threads each, or of one GPU each, and leaves a checkpoint in
    `job.out`. Workers that die are replaced, and go on where the training was saved last. `on_step` is told of a step
    every second.

    Raises:
        DeployError: there is no Ray cluster to be had.
        DistilError: Ray Train is not installed, or the training failed.
    """
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise DistilError(
            f"--workers needs Ray Train on every node: pip install 'phalanx-inference[train]' ({error})"
        ) from error
    join_or_start(workers, say)
    actor_lines.mute()  # Ray Train's; what fails is in its error
    on_gpus = job.settings.device != "cpu"
    kind, each = ("GPU", 1.0) if on_gpus else ("CPU", float(threads))
    if (there := ray.cluster_resources().get(kind, 0.0)) < workers * each:
        raise DistilError(
            f"{workers} workers need {workers * each:.0f} {kind}s, and the Ray cluster has {there:.0f}: lower "
            "--workers or --threads"
        )
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _train,
            train_loop_config={"job": job, "text": np.array(text, np.int64), "threads": threads},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpus, resources_per_worker={kind: each}),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=_MOST_FAILURES)),
        )
        try:
            with _watching(_now(job.out), on_step):
                trainer.fit()
        except Exception as error:  # Ray Train raises several kinds
            raise DistilError(
                f"the training failed, and what was saved is in {job.out}: the same command goes on. {error}"
            ) from error
        except (KeyboardInterrupt, SystemExit) as error:  # Ray Train makes an exit of Ctrl-C
            say(f"what was saved last is in {job.out}: the same command goes on")
            raise KeyboardInterrupt from error


def _train(given: dict[str, Any]) -> None:
    """In every worker."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from partitioning.checkpoint import open_checkpoint
    from partitioning.distil.run import distil
    from partitioning.distil.saved import Folder
    from partitioning.distil.student import read_student
    from partitioning.distil.windows import Windows
    from partitioning.distil.workers import Workers

    job: Job = given["job"]
    torch.set_num_threads(given["threads"])
    settings = job.settings.model_copy(update={"device": str(get_device())})
    context = get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    if not job.out.is_dir():
        raise DistilError(f"{job.out} is not on {os.uname().nodename}: name a folder on a disk that all nodes share")
    with open_checkpoint(job.teacher) as checkpoint:
        student = read_student(checkpoint, job.teacher, job.layers, job.student, settings.seed)
        windows = Windows(given["text"].tolist(), settings)
        folder = Folder(job.out, job.identity)
        note = _progress(_now(job.out), workers.rank)
        distil(checkpoint, job.teacher, student, windows, settings, folder, note, _never, workers)


def _now(out: Path) -> Path:
    """Where the first worker writes which step it is at."""
    return out / "unfinished" / "now.json"


def _progress(file: Path, rank: int) -> Callable[[Step], None]:
    last = 0.0

    def note(step: Step) -> None:
        nonlocal last
        if rank == 0 and monotonic() - last > _LOOK_EVERY_S:
            last = monotonic()
            write_whole(file, json.dumps(asdict(step)).encode())

    return note


@contextmanager
def _watching(file: Path, on_step: Callable[[Step], None]) -> Iterator[None]:
    from partitioning.distil.train import Step

    over = Event()

    def watch() -> None:
        while not over.wait(_LOOK_EVERY_S):
            with suppress(FileNotFoundError):  # before the first step, and after the last
                on_step(Step(**json.loads(file.read_text())))

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _never() -> bool:
    return False
