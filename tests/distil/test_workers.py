"""`phalanx distil --workers`: a Ray Train job whose workers divide the batches of a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from cluster.cli import app

_QUICK = ("--layers", "2", "--window", "16", "--batch", "2", "--accumulate", "2", "--dtype", "float32")


def _command(teacher: Path, text: Path, out: Path, *options: str) -> list[str]:
    given = ["distil", str(teacher), "--text", str(text), "--out", str(out), *_QUICK, *options]
    return [sys.executable, "-m", "cluster.cli", *given]


def _alone() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def _train(command: list[str]) -> str:
    done = subprocess.run(command, env=_alone(), stderr=subprocess.PIPE, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_train_the_student_that_one_process_trains(teacher: Path, text: Path, tmp_path: Path) -> None:
    _train(_command(teacher, text, tmp_path / "one", "--steps", "12", "--threads", "1"))
    said = _train(_command(teacher, text, tmp_path / "two", "--steps", "12", "--workers", "2"))
    assert "12 steps; distillation.json" in said
    logs = [json.loads((tmp_path / name / "distillation.json").read_text()) for name in ("one", "two")]
    losses = [[step["loss"] for step in log["steps"]] for log in logs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert logs[1]["before"] == pytest.approx(logs[0]["before"])
    assert logs[1]["after"] == pytest.approx(logs[0]["after"], rel=1e-3)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=0, atol=1e-3)
    assert not (tmp_path / "two" / "unfinished").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_dies_is_replaced(teacher: Path, text: Path, tmp_path: Path) -> None:
    command = _command(teacher, text, tmp_path / "out", "--minutes", "0.2", "--workers", "2")
    with subprocess.Popen(command, env=_alone(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "step " not in said:
            character = process.stderr.read(1)
            assert character, said
            said += character
        worker = next(
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if child.cmdline()[0].startswith("ray::") and "TrainWorker" in child.cmdline()[0]
        )
        worker.kill()
        said += process.stderr.read()
        assert process.wait(200) == 0, said
    assert json.loads((tmp_path / "out" / "distillation.json").read_text())["after"]["divergence"] > 0


def test_batches_that_cannot_be_shared_are_refused(teacher: Path, text: Path, tmp_path: Path) -> None:
    command = _command(teacher, text, tmp_path / "out", "--workers", "3")
    result = CliRunner().invoke(app, command[3:])
    assert result.exit_code != 0
    assert "3 workers cannot share 2 batches a step" in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_room_for_are_refused(teacher: Path, text: Path, tmp_path: Path) -> None:
    command = _command(teacher, text, tmp_path / "out", "--workers", "2", "--threads", "1000")
    refused = subprocess.run(command, env=_alone(), stderr=subprocess.PIPE, text=True, timeout=120)
    assert refused.returncode == 1
    assert "Error: 2 workers need 2000 CPUs, and the Ray cluster has" in refused.stderr
    assert "lower --workers or --threads" in refused.stderr
