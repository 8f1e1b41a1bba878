"""The measurement of a GPU, on a CPU: what it runs there is slow and small, but it is all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.gpu import main
from benchmarks.random_model import BITS, RandomCheckpoint, spec_of
from partitioning.quantised import Codes

_app = typer.Typer()
_app.command()(main)


@pytest.mark.parametrize(("kept", "more"), [("bf16", ["--transformers"]), ("int4", []), ("w8a8", [])])
def test_it_measures_every_workload_and_says_what_share_of_the_limits_it_is(
    tmp_path: Path, kept: str, more: list[str]
) -> None:
    out = tmp_path / "gpu.json"
    options = f"--shape tiny --kept {kept} --sheet cpu --prompt 64 --crowds 3 --rounds 1 --out {out}".split()
    result = CliRunner().invoke(_app, [*options, *more], catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(out.read_text())
    assert (report["shape"], report["kept"], report["device"]) == ("tiny", kept, "CPU")
    engines = [line["engine"] for line in report["rounds"]]
    assert engines == ["Phalanx", *(["transformers"] if more else [])]
    for line in report["rounds"]:
        assert {"decode", "prefill", "batch3"} <= line.keys()
        assert line["read_share"] > 0
        assert line["product_share"] > 0
        assert line["batch3"]["tokens_per_s"] > 0
    assert result.output.count("% of the bandwidth in decode") == len(engines)


@pytest.mark.parametrize("kept", ["int8", "int4", "w8a8", "fp8"])
def test_random_matrices_are_kept_in_the_bits_that_are_counted(kept: str) -> None:
    spec = spec_of("tiny", kept)  # type: ignore[arg-type]
    checkpoint = RandomCheckpoint(spec, kept)  # type: ignore[arg-type]
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        whole = checkpoint.read(name := f"model.layers.1.{name}.weight")
        codes = checkpoint.read_quantised(name, kind="cuda")
        assert isinstance(codes, Codes)
        assert codes.shape == whole.shape
        floats = codes.dequantise()
        assert torch.isfinite(floats).all()
        assert 0 < floats.std() < 1
    assert spec.gpu_packed_bits == BITS[kept]  # type: ignore[index]
    assert checkpoint.read_quantised("lm_head.weight", kind="cuda") is None
