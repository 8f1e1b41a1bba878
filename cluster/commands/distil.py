"""`phalanx distil`: a small model that predicts as a large one does."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from tqdm import tqdm

from cluster.commands import say
from cluster.models import resolve_model
from cluster.sole_writer import sole_writer
from partitioning.distil.settings import DistilError, Divergence, Interrupted, Settings

if TYPE_CHECKING:
    from cluster.text import Tokenizer
    from partitioning.checkpoint import Checkpoint
    from partitioning.distil.student import Student
    from partitioning.distil.train import Step

_WINDOW_HELP = "Tokens that are learned from at once, and the length of what the teacher writes."
_DIVERGENCE_HELP = "forward covers what the teacher might say, reverse keeps to what it likely says."
_WORKERS_HELP = "Train as a Ray Train job: so many processes of the Ray cluster divide the batches of a step."
_DTYPE_HELP = "Of products. auto: bfloat16 where the processor has instructions for it."


def distil(
    context: typer.Context,
    teacher: Annotated[str, typer.Argument(help="A Hugging Face folder, a GGUF file or a known name.")],
    out: Annotated[Path, typer.Option(help="The folder to write; what an interrupted run left there is gone on with.")],
    layers: Annotated[int | None, typer.Option(help="The student begins as so many of the teacher's layers.")] = None,
    student: Annotated[
        Path | None, typer.Option(help="Or as this checkpoint, or as a new model that this config.json describes.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="A .txt or .jsonl file to learn from; may be given again. Default: the teacher writes."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Without --text: how many the teacher writes.")] = 400_000,
    prompts: Annotated[
        Path | None, typer.Option(help="What it then continues: a .jsonl file. Default: it makes up the questions too.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How long to train.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Or so, besides writing and measuring. Default: 30.")] = None,
    divergence: Annotated[Divergence, typer.Option(help=_DIVERGENCE_HELP)] = "forward",
    temperature: Annotated[float, typer.Option(help="Divides the logits of both.")] = 1.0,
    window: Annotated[int, typer.Option(min=8, help=_WINDOW_HELP)] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Windows in memory at once.")] = 8,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches a step.")] = 1,
    positions: Annotated[float, typer.Option(help="The part of a batch whose predictions are compared.")] = 0.5,
    learning_rate: Annotated[float, typer.Option(help="After the warm-up.")] = 1e-3,
    warmup: Annotated[float, typer.Option(help="The part of the training in which it rises; then it falls.")] = 0.03,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.01,
    clip: Annotated[float, typer.Option(help="The longest gradient.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same student.")] = 0,
    dtype: Annotated[Literal["auto", "bfloat16", "float32"], typer.Option(help=_DTYPE_HELP)] = "auto",
    device: Annotated[str, typer.Option(help="Where to train, such as cuda:0.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one for each core, shared by workers.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help=_WORKERS_HELP)] = None,
) -> None:
    """Train a small model to predict as TEACHER does: a draft for speculation, or a pruned model to be healed.

    phalanx distil smollm2 --layers 4 --minutes 45 --out smollm2-draft
    """
    if (layers is None) == (student is None):
        raise typer.BadParameter("give either --layers or --student")
    if text and prompts:
        raise typer.BadParameter("--prompts are for a teacher that writes: leave --text out")
    if steps is not None and minutes is not None:
        raise typer.BadParameter("give either --steps or --minutes")
    if workers is not None and accumulate % workers:
        raise typer.BadParameter(
            f"{workers} workers cannot share {accumulate} batches a step: make --accumulate a multiple of --workers"
        )
    context.with_resource(sole_writer(out))
    # These import torch, which would make --help wait for seconds.
    import torch
    from pydantic import ValidationError

    from cluster.teacher_text import digest, read_texts, write_texts
    from cluster.text import TokenizerMissing, load_tokenizer
    from partitioning.checkpoint import open_checkpoint
    from partitioning.distil.run import Outcome
    from partitioning.distil.run import distil as run
    from partitioning.distil.saved import Folder
    from partitioning.distil.student import read_student
    from partitioning.distil.windows import Windows
    from partitioning.topology import usable_cores

    try:
        settings = Settings(
            divergence=divergence,
            temperature=temperature,
            steps=steps,
            minutes=30 if steps is None and minutes is None else minutes,
            window=window,
            batch=batch,
            accumulate=accumulate,
            positions=positions,
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            clip=clip,
            seed=seed,
            dtype=_dtype(device) if dtype == "auto" else dtype,
            device=device,
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise typer.BadParameter(f"--{str(fault['loc'][0]).replace('_', '-')}: {fault['msg']}") from error
    threads = threads or max(1, usable_cores() // (workers or 1))
    torch.set_num_threads(threads)
    path = resolve_model(teacher)
    try:
        tokenizer = load_tokenizer(path)
    except TokenizerMissing:
        tokenizer = None
    with open_checkpoint(path) as checkpoint:
        begins = read_student(checkpoint, path, layers, student, seed)
        _check_window(window, checkpoint, begins)
        began = f"{layers} layers" if student is None else str(student.resolve())
        identity = {"teacher": str(path.resolve()), "student": began, **settings.model_dump(mode="json")}
        if text:
            content = read_texts(text, _needed(tokenizer, path))
            windows = Windows(content, settings)
            folder = Folder(out, identity | {"text": digest(content)})
        else:
            starts = _starts(prompts, tokens, tokenizer, path, checkpoint.spec.bos_token_id, settings)
            folder = Folder(out, identity | {"text": digest(starts)})
            file = folder.unfinished / "written.jsonl"
            try:
                content = write_texts(path, starts, window, seed, threads, file, _writing)
            except KeyboardInterrupt:
                say(f"what the teacher has written is saved in {out}: the same command goes on")
                raise
            windows = Windows(content, settings)
        if workers is None:
            with _bar() as on_step, _asked_to_stop() as stop:
                try:
                    outcome = run(checkpoint, path, begins, windows, settings, folder, on_step, stop)
                except Interrupted as interrupted:
                    say(f"{interrupted}, and saved in {out}: the same command goes on")
                    raise typer.Exit(130) from interrupted
    if workers is not None:
        from cluster.distil_job import Job, train

        begun = student and student.resolve()
        job = Job(path.resolve(), layers, begun, settings, out.resolve(), folder.identity)
        with _bar() as on_step:
            train(job, content, workers, threads, say, on_step)
        outcome = Outcome.read(out)
    if path.is_file() and tokenizer is not None:
        tokenizer.save(out)
    for name, reading in (("before", outcome.before), ("after", outcome.after)):
        say(
            f"{name}: divergence {reading.divergence:.3f} nats a token, same likeliest token "
            f"{reading.agreement:.1%}, guesses accepted at temperature 1 {reading.acceptance:.1%}"
        )
    say(f"{out}: {outcome.steps} steps; distillation.json and distillation.svg there show the loss")


def _check_window(window: int, teacher: Checkpoint, student: Student) -> None:
    longest = min(teacher.spec.max_position, student.spec.max_position)
    if window > longest:
        raise DistilError(f"--window {window} is longer than the models' {longest} positions: lower it")


def _starts(
    prompts: Path | None, tokens: int, tokenizer: Tokenizer | None, path: Path, begin: int | None, settings: Settings
) -> list[list[int]]:
    """What the teacher is to continue, each to a window."""
    from cluster.teacher_text import opening, read_prompts

    count = tokens // settings.window
    if count < settings.windows + 1:
        raise DistilError(
            f"--tokens {tokens} are too few: a step of {settings.windows} windows of {settings.window} and one to "
            f"measure on need {(settings.windows + 1) * settings.window}"
        )
    if prompts is None:
        return [opening(tokenizer, begin)] * count
    asked = read_prompts(prompts, _needed(tokenizer, path), settings.window)
    return [asked[number % len(asked)] for number in range(count)]


def _needed(tokenizer: Tokenizer | None, path: Path) -> Tokenizer:
    if tokenizer is None:
        raise DistilError(f"{path} has no tokenizer, so --text and --prompts cannot be read: leave them out")
    return tokenizer


def _dtype(device: str) -> Literal["bfloat16", "float32"]:
    """Without such instructions products in bfloat16 take longer than in float32."""
    import torch

    fast = device != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def _writing(finished: Iterable[int], count: int) -> Iterable[int]:
    return tqdm(finished, "the teacher writes", count, unit="text")


@contextmanager
def _bar() -> Iterator[Callable[[Step], None]]:
    shape = "{l_bar}{bar}| {elapsed}, {remaining} left{postfix}"
    with tqdm(desc="distilling", total=1.0, bar_format=shape) as bar:

        def show(step: Step) -> None:
            bar.set_postfix_str(f"step {step.number}, loss {step.loss:.3f}", refresh=False)
            bar.update(step.used - bar.n)

        yield show


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether there was a Ctrl-C, or a request to end; the step that runs is finished first."""
    asked: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda number, frame: asked.append(number)) for kind in kinds}
    try:
        yield lambda: bool(asked)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
