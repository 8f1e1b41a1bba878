"""Engines that measure what they are asked, one request at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer

from benchmarks.engines import Engine, engines, start
from benchmarks.turns import _ask
from benchmarks.workload import WORKLOADS

_ENGINE = """
import sys
from benchmarks.workload import measure_on_request

def generate(workload, prompts):
    assert len(prompts) == workload.prompts
    print("not a measurement")
    return [[0.5 + 0.25 * token for token in range(workload.output_tokens)] for _ in prompts]

assert sys.argv[-1] == "--on-request"
measure_on_request(generate, 1000)
"""


def test_an_engine_answers_each_request_with_its_measurement() -> None:
    decode, prefill, batch = WORKLOADS
    with start(Engine(Path(), (sys.executable, "-c", _ENGINE))) as process:
        assert _ask(process, prefill, 0)["tokens_per_s"] == 1024 / 0.5
        assert _ask(process, decode, 1)["tpot_s"] == 0.25
        assert _ask(process, batch, 2)["tokens_per_s"] == pytest.approx(32 * 64 / (0.5 + 63 * 0.25))
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def test_an_engine_that_ends_is_said_to_have_ended() -> None:
    with start(Engine(Path(), (sys.executable, "-c", "import sys; sys.exit(3)"))) as process:
        process.wait(30)
        with pytest.raises(typer.BadParameter, match="exit code 3"):
            _ask(process, WORKLOADS[0], 0)


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(typer.BadParameter, match="go together"):
        engines(Path("m"), None, Path("python"), None, None, None)
    with pytest.raises(typer.BadParameter, match="no engine them"):
        engines(Path("m"), None, None, None, None, ["them"])
    assert list(engines(Path("m"), None, None, None, Path("w"), ["Phalanx W8A8"])) == ["Phalanx W8A8"]
