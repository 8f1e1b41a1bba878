"""`phalanx generate` and its batch files, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from tests.oracle.references import Reference
from tests.tiny_models import make_tiny
from tests.tiny_tokenizer import add_tiny_tokenizer

_PROMPT = [7, 200, 31]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny(tmp_path_factory.mktemp("model"), "qwen2", bos_token_id=304, eos_token_id=305)
    add_tiny_tokenizer(folder)
    return folder


def _said(model: Path, *options: str, code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says in this process, where it is to end with `code` and without an output."""
    ended = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["phalanx", "generate", str(model), "--dtype", "float32", *options])
        try:
            main()
        except SystemExit as exit:
            ended = exit.code
    said = capsys.readouterr()
    assert ended == code, said.err
    assert said.out == ""
    return " ".join(said.err.replace("│", " ").split())


def _generate(model: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", "generate", str(model), "--dtype", "float32", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == code, result.stderr
    return result


@pytest.mark.parametrize("layout", [(), ("--tp", "2", "--pp", "2")])
def test_json_is_one_object_with_the_tokens_of_transformers(model: Path, layout: tuple[str, ...]) -> None:
    options = ["--token-ids", "7,200,31", "--max-tokens", "20", "--ignore-eos", "--logprobs", "2", "--json"]
    result = json.loads(_generate(model, *options, *layout).stdout)
    (output,) = result["outputs"]
    assert output["token_ids"] == Reference(model).greedy(_PROMPT, 20)
    assert output["finish_reason"] == "length"
    assert [len(entry["top"]) for entry in output["logprobs"]] == [2] * 20
    assert (result["usage"]["prompt_tokens"], result["usage"]["completion_tokens"]) == (3, 20)


def test_keys_and_values_in_8_bits(model: Path) -> None:
    options = ["--token-ids", "7,200,31", "--max-tokens", "20", "--ignore-eos", "--kv-cache", "int8", "--json"]
    alone, together = (json.loads(_generate(model, *options, "--tp", tp).stdout) for tp in ("1", "2"))
    assert len(alone["outputs"][0]["token_ids"]) == 20
    assert together["outputs"] == alone["outputs"]


def test_text_is_streamed_to_standard_output_alone(model: Path) -> None:
    plain = _generate(model, "--prompt", "hello", "--max-tokens", "10", "--ignore-eos")
    as_json = _generate(model, "--prompt", "hello", "--max-tokens", "10", "--ignore-eos", "--json")
    assert plain.stdout == json.loads(as_json.stdout)["outputs"][0]["text"] + "\n"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--token-ids", "1,x"], 2, "must be whole numbers with commas"),
        (["--token-ids", "1,307"], 1, "token_ids[1] is 307"),
        (["--prompt", ""], 1, "the prompt is empty"),
        (["--prompt", "x", "--temperature", "-1"], 1, "sampling.temperature is -1"),
        (["--prompt", "x", "--token-ids", "1"], 2, "exactly one of"),
        (["--input", "x.jsonl"], 2, "--input and --output go together"),
        (["--prompt", "x", "--pp", "4"], 1, "pp=4 stages need as many layers"),
        (["--prompt", "x", "--tp", "0"], 2, "Invalid value for '--tp'"),
        (["--prompt", "x", "--pp", "-1"], 2, "Invalid value for '--pp'"),
        (["--prompt", "x", "--tp", "100000000000"], 1, "ranks on one host are more than"),
        (["--prompt", "x", "--kv-cache-tokens", "0"], 1, "kv_cache_tokens must be at least 1"),
        (["--prompt", "x", "--kv-cache", "int4"], 2, "'int4' is not one of 'auto', 'int8'"),
    ],
)
def test_a_wrong_option_is_one_line_about_it(
    model: Path, options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in _said(model, *options, code=code, capsys=capsys)


def test_an_error_in_a_process_of_its_own_is_no_traceback(model: Path) -> None:
    result = _generate(model, "--prompt", "", code=1)
    assert result.stderr.startswith("Error: the prompt is empty")
    assert "Traceback" not in result.stderr


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in file.read_text().splitlines()]


def test_a_batch_goes_on_where_it_was_interrupted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    jobs: list[dict[str, Any]] = [{"token_ids": [number, 5]} for number in range(20)]
    jobs.append({"prompt": "a line\u2028separator", "max_tokens": 3})
    jobs.append({"messages": [{"role": "user", "content": "hi"}], "temperature": 0.9, "seed": 1})
    source.write_text("\n".join(json.dumps(job, ensure_ascii=False) for job in jobs) + "\n\n", encoding="utf-8")
    options = ["--input", str(source), "--output", str(target), "--max-tokens", "6", "--ignore-eos", "--tp", "2"]
    _generate(model, *options)
    whole = {row["line"]: row["outputs"] for row in _lines(target)}
    assert whole.keys() == set(range(22))
    assert whole[3][0]["token_ids"] == Reference(model).greedy([3, 5], 6)
    assert len(whole[20][0]["token_ids"]) == 3

    cut = target.read_bytes()[:-30]
    target.write_bytes(cut)  # as when the machine stopped in the middle of a line
    kept = cut[: cut.rfind(b"\n") + 1]
    again = _generate(model, *options)
    assert "22/22" in again.stderr
    assert target.read_bytes().startswith(kept)
    assert {row["line"]: row["outputs"] for row in _lines(target)} == whole
    assert "has all 22 results" in _said(model, *options, code=0, capsys=capsys)

    source.write_text(source.read_text(encoding="utf-8").replace("[3, 5]", "[4, 4]"), encoding="utf-8")
    assert "belongs to another input" in _said(model, *options, code=1, capsys=capsys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x"', "line 2: "),
        ("[1]", "line 2: is not a JSON object"),
        ('{"prompt": "x", "token_ids": [1]}', "line 2: needs exactly one of"),
        ('{"prompt": 3}', "line 2: prompt has to be text"),
        ('{"token_ids": [1, true]}', "line 2: token_ids has to be a list of whole numbers"),
        ('{"messages": "hi"}', "line 2: messages has to be a list"),
        ('{"messages": [{"role": "user", "content": 3}]}', "line 2: messages"),
        ('{"prompt": "x", "max_tokns": 3}', "line 2: "),
        ('{"prompt": "x", "temperature": 99}', "line 2: sampling.temperature is 99"),
    ],
)
def test_a_wrong_line_is_named_before_anything_runs(
    model: Path, tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "x"}\n' + line + "\n")
    assert message in _said(model, "--input", str(source), "--output", str(target), code=1, capsys=capsys)
    assert not target.exists()


def test_an_output_of_something_else_is_not_overwritten(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "precious.txt"
    source.write_text('{"prompt": "x"}\n')
    target.write_text("my thesis\n")
    error = _said(model, "--input", str(source), "--output", str(target), code=1, capsys=capsys)
    assert "is not the output of a batch" in error
    assert target.read_text() == "my thesis\n"
