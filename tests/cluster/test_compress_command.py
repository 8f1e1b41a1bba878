"""`phalanx compress`, as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.cli import app
from cluster.sole_writer import sole_writer
from cluster.text import load_tokenizer
from partitioning.cache import CacheError
from partitioning.checkpoint import open_checkpoint
from partitioning.compress.recipe import CompressionError, read_recipe
from tests.tiny_gguf import make_tiny_gguf
from tests.tiny_models import make_tiny
from tests.tiny_quantised import SIZES
from tests.tiny_tokenizer import add_tiny_tokenizer


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny(tmp_path_factory.mktemp("model"), "llama", **SIZES, num_hidden_layers=2)
    add_tiny_tokenizer(folder)
    return folder


def compress(model: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["compress", str(model), *options])


def test_a_recipe_becomes_a_folder_that_talks(talking: Path, tmp_path: Path) -> None:
    recipe, text = tmp_path / "r.yaml", tmp_path / "text.txt"
    recipe.write_text(
        "calibration: {samples: 4, tokens: 32}\n"
        "structure: {kv_heads: 2}\nsparsify: [{method: wanda, pattern: '2:4'}]\n"
        "quantise: [{method: gptq, bits: 4, group_size: 32}]\n"
    )
    text.write_text("It was the best of times, it was the worst of times. " * 20)
    result = compress(talking, "--recipe", str(recipe), "--calibration", str(text), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert f"Serve it with: phalanx serve {tmp_path / 'out'}" in result.output
    assert "zeros under 4 or 8 bits are stored" in result.output
    spec = open_checkpoint(tmp_path / "out").spec
    assert (spec.num_heads, spec.packed_bits) == (6, 4.5)
    ours, theirs = load_tokenizer(tmp_path / "out"), load_tokenizer(talking)
    assert ours.encode("the best of times") == theirs.encode("the best of times")
    messages = [{"role": "user", "content": "hi"}]
    assert ours.chat_prompt(messages) == theirs.chat_prompt(messages)


def test_zeros_under_floats_are_left_out_in_memory_as_those_of_weights_in_16_bits(
    talking: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "sparsify: [{method: magnitude}]\nquantise: [{method: rtn, type: float, bits: 8, group_size: channel}]\n"
    )
    result = compress(talking, "--recipe", str(recipe), "--out", str(tmp_path / "out"))
    assert "CPUs with AVX-512 leave zeros out" in result.output


def test_auto_writes_a_recipe_beside_the_folder_and_follows_it(talking: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was the age of wisdom, it was the age of foolishness. " * 1200)
    options = ["--calibration", str(text), "--out"]
    result = compress(talking, "--auto", "--max-loss", "900%", "--memory", "900KB", *options, str(tmp_path / "one"))
    assert result.exit_code == 0, result.output
    recipe = tmp_path / "one.yaml"
    assert "perplexity may grow by 900.00%" in recipe.read_text()
    assert {rule.bits for rule in read_recipe(str(recipe)).quantise} <= {4, 8}
    assert read_recipe(str(recipe)) == read_recipe(str(tmp_path / "one" / "recipe.yaml"))
    again = compress(talking, "--auto", "--max-loss", "1%", *options, str(tmp_path / "one"))
    assert "one.yaml is there already: use it with --recipe" in str(again.exception)


def test_a_gguf_file_becomes_a_folder(talking: Path, tmp_path: Path) -> None:
    file = make_tiny_gguf(tmp_path / "m.gguf", talking)
    result = compress(file, "--recipe", "w8a16-rtn", "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, CompressionError)  # groups of 64 do not divide these widths
    recipe = tmp_path / "r.yaml"
    recipe.write_text("quantise: [{method: rtn, bits: 8, group_size: 32}]")
    result = compress(file, "--recipe", str(recipe), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    with open_checkpoint(file) as before, open_checkpoint(tmp_path / "out") as after:
        assert after.spec.num_heads == before.spec.num_heads
        assert after.spec.rope == before.spec.rope
        name = "model.layers.1.self_attn.q_proj.weight"
        assert (before.read(name) - after.read(name)).abs().max() < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either --recipe, or --auto"),
        (("--auto",), "--auto needs --max-loss, such as 0.5%"),
        (("--auto", "--max-loss", "0.5"), "--max-loss 0.5 must be like 0.5%"),
        (("--auto", "--max-loss", "1%", "--memory", "lots"), "--memory lots must be like 100MB"),
        (("--auto", "--max-loss", "1%", "--speed", "2x", "--memory", "1GB"), "either --memory or --speed"),
        (("--recipe", "w4a16-rtn", "--speed", "2x"), "are for --auto"),
        (("--recipe", "w4a16-gptq", "--calibration", "/nowhere"), "/nowhere cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    talking: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = compress(talking, *options, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command", [["compress", "--recipe", "w8a16-rtn"], ["distil", "--layers", "1"]], ids=lambda command: command[0]
)
def test_a_folder_that_another_command_writes_to_is_left_alone(
    talking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("PHALANX_CACHE", str(tmp_path / "cache"))
    name, *options = command
    with sole_writer(tmp_path / "out"):
        result = CliRunner().invoke(app, [name, str(talking), *options, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "another command is writing to" in result.output
    assert not (tmp_path / "out").exists()
    with sole_writer(tmp_path / "out"):
        pass


def test_without_a_place_for_its_lock_it_says_how_to_name_one(
    talking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("PHALANX_CACHE", str(tmp_path / "cache"))
    result = compress(talking, "--recipe", "w8a16-rtn", "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, CacheError)
    assert not (tmp_path / "out").exists()
