"""`phalanx distil` on tiny models: students that learn, go on after an interruption, and open everywhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from cluster.cli import app
from cluster.teacher_text import write_texts
from cluster.text import load_tokenizer
from partitioning.checkpoint import open_checkpoint
from partitioning.distil.run import distil
from partitioning.distil.saved import Folder
from partitioning.distil.settings import DistilError, Interrupted, Settings
from partitioning.distil.student import from_layers
from partitioning.distil.windows import Windows
from tests.distil.conftest import TEXT
from tests.oracle.references import Reference, prompts_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_models import make_tiny
from workers.request import SamplingParams

QUICK = ("--window", "16", "--batch", "4", "--threads", "1")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["distil", *map(str, arguments)])


def log_of(out: Path) -> dict[str, Any]:
    log: dict[str, Any] = json.loads((out / "distillation.json").read_text())
    return log


def test_a_student_learns_from_what_its_teacher_writes_and_opens_everywhere(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command(teacher, "--layers", 2, "--steps", 40, "--tokens", 640, "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    log = log_of(out)
    assert log["after"]["divergence"] < 0.7 * log["before"]["divergence"]
    assert log["after"]["acceptance"] > log["before"]["acceptance"]
    assert [step["step"] for step in log["steps"]] == list(range(1, 41))
    assert (out / "distillation.svg").read_text().count("<polyline") == 2
    assert not (out / "unfinished").exists()
    assert load_tokenizer(out).encode("best of times") == load_tokenizer(teacher).encode("best of times")
    with open_checkpoint(teacher) as before, open_checkpoint(out) as after:
        assert after.spec.num_layers == 2
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(before.read(name), after.read(name))
    reference, prompts = Reference(out), prompts_of((5, 21), 307)
    plan = plan_for(out, 2)
    with thread_replica(plan, config_for(plan)) as replica:
        tokens = generate(replica, prompts, SamplingParams(max_tokens=12, ignore_eos=True))
    assert [one for one, _ in tokens] == [reference.greedy(prompt, 12) for prompt in prompts]


def test_the_teacher_continues_the_prompts_it_is_given(teacher: Path, tmp_path: Path) -> None:
    asked = [[5, 6, 7], [8, 9]]
    starts = [asked[number % 2] for number in range(5)]
    file = tmp_path / "written.jsonl"
    write = partial(write_texts, teacher, starts, 16, 3, 1, file, lambda finished, count: finished)
    tokens = write()
    windows = [tokens[i : i + 16] for i in range(0, 80, 16)]
    assert len(tokens) == 80
    assert [window[: len(start)] for window, start in zip(windows, starts, strict=True)] == starts
    assert windows[0] != windows[2]
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    assert write() == tokens


def train(teacher: Path, out: Path, stop_after: int | None = None) -> None:
    settings = Settings(steps=10, window=16, batch=3, accumulate=2, positions=0.7)
    with open_checkpoint(teacher) as checkpoint:
        steps: list[int] = []
        distil(
            checkpoint,
            teacher,
            from_layers(checkpoint, teacher, 2),
            Windows(TEXT, settings),
            settings,
            Folder(out, settings.model_dump()),
            lambda step: steps.append(step.number),
            lambda: len(steps) == stop_after,
        )


def test_an_interrupted_training_goes_on_and_ends_with_the_same_bytes(teacher: Path, tmp_path: Path) -> None:
    train(teacher, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(Interrupted, match="stopped after step"):
            train(teacher, tmp_path / "part", stop_after=4)
    train(teacher, tmp_path / "part")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]
    whole, part = log_of(tmp_path / "whole"), log_of(tmp_path / "part")
    assert [step["loss"] for step in part["steps"]] == [step["loss"] for step in whole["steps"]]
    assert (part["before"], part["after"]) == (whole["before"], whole["after"])
    with pytest.raises(DistilError, match="not empty: name a new folder"):
        train(teacher, tmp_path / "whole")


@pytest.mark.slow
def test_a_process_that_is_interrupted_saves_and_says_how_to_go_on(teacher: Path, text: Path, tmp_path: Path) -> None:
    options = ["--layers", "2", "--text", str(text), "--minutes", "0.2", "--out", str(tmp_path / "out"), *QUICK]
    command = [sys.executable, "-m", "cluster.cli", "distil", str(teacher), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "step 1," not in said:
        said += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 130
    assert f"saved in {tmp_path / 'out'}: the same command goes on" in rest
    assert "Traceback" not in rest
    subprocess.run(command, check=True)
    assert log_of(tmp_path / "out")["after"]["divergence"] > 0


def test_a_part_of_another_distillation_is_left_alone(tmp_path: Path) -> None:
    Folder(tmp_path, {"seed": 0, "steps": 3})
    Folder(tmp_path, {"seed": 0, "steps": 3})
    with pytest.raises(DistilError, match="another distillation, whose seed differ"):
        Folder(tmp_path, {"seed": 1, "steps": 3})


def test_a_new_model_learns_all_of_its_weights(teacher: Path, text: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 3, "head_dim": 16}
    small = make_tiny(tmp_path / "small", "llama", num_hidden_layers=1, tie_word_embeddings=True, **sizes)
    options = ("--text", text, "--steps", 40, "--divergence", "reverse", "--learning-rate", 0.003, *QUICK)
    result = command(teacher, "--student", small / "config.json", *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    # The text is random, so there is nothing to learn for another one.
    losses = [step["loss"] for step in log_of(tmp_path / "out")["steps"]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert (checkpoint.spec.hidden_size, checkpoint.spec.tied_head) == (48, True)


def test_a_checkpoint_goes_on_from_its_own_weights(teacher: Path, text: Path, tmp_path: Path) -> None:
    options = ("--text", text, "--steps", 1, "--learning-rate", 1e-9, *QUICK)
    result = command(teacher, "--student", teacher, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert log_of(tmp_path / "out")["before"]["divergence"] < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either --layers or --student"),
        (("--layers", 2, "--steps", 3, "--minutes", 1), "give either --steps or --minutes"),
        (("--layers", 4), "--layers 4 must be from 1 to 3: the teacher has 4"),
        (("--layers", 2, "--positions", 2), "--positions: Input should be less than or equal to 1"),
        (("--layers", 2, "--tokens", 600), "--tokens 600 are too few"),
        (("--layers", 2, "--window", 1024), "--window 1024 is longer than the models' 512 positions"),
        (("--layers", 2, "--text", "/nowhere"), "/nowhere cannot be read as UTF-8 text"),
        (("--layers", 2, "--text", "HERE/short"), "the text has 12 tokens; a step of 8 windows of 512"),
        (("--layers", 2, "--text", "HERE/wrong.jsonl"), 'wrong.jsonl, line 2 needs "text", "messages" or "token_ids"'),
        (("--layers", 2, "--text", "HERE/beyond.jsonl"), "beyond.jsonl, line 1 needs"),
        (
            ("--layers", 2, "--text", "HERE/wrong.jsonl", "--prompts", "HERE/wrong.jsonl"),
            "--prompts are for a teacher that writes",
        ),
        (("--layers", 2, "--prompts", "HERE/short", "--window", 8, "--batch", 1), "has 1 prompts of up to 12 tokens"),
        (("--student", "HERE/other"), "has a vocabulary of 300 tokens, the teacher one of 307"),
        (("--student", "HERE/other/config.json"), "config.json has a vocabulary of 300 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    teacher: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    contents = {
        "short": "abcd " * 3,
        "wrong.jsonl": '{"text": "a"}\n{"txt": "a"}\n',
        "beyond.jsonl": '{"token_ids": [307]}',
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    if "other" in str(options):
        make_tiny(tmp_path / "other", "llama", vocab_size=300)
    given = [str(option).replace("HERE", str(tmp_path)) for option in options]
    result = command(teacher, *given, "--out", tmp_path / "out")
    shown = " ".join((result.output + str(result.exception)).replace("│", " ").split())
    assert message in shown
    assert result.exit_code != 0
    assert not (tmp_path / "out").exists()
