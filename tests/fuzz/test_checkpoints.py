"""Checkpoints from anybody: each is refused with a CheckpointError that names it, or can be read to its last byte."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioning.checkpoint import CheckpointError, open_checkpoint
from partitioning.checkpoint.tensors import model_tensors
from partitioning.plan import Span
from tests.fuzz.examples import examples, refused
from tests.fuzz.mutations import damaged, edited
from tests.tiny_gguf import make_tiny_gguf
from tests.tiny_models import make_tiny

_TINY = {"num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "head_dim": 4}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"), "llama3", **_TINY, **_HEADS)


@pytest.fixture(scope="module")
def gguf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"tie_word_embeddings": False, "num_attention_heads": 8, "num_key_value_heads": 2}
    plain = make_tiny(tmp_path_factory.mktemp("plain"), "llama", **(_TINY | _HEADS | options))
    return make_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", plain, kind="Q8_0")


def _read_all(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for name, shape in model_tensors(checkpoint.spec).items():
            assert tuple(checkpoint.read(name).shape) == shape
            checkpoint.read_quantised(name)
            if len(shape) == 2:
                checkpoint.read(name, rows=Span(1, 2), cols=Span(shape[1] - 1, shape[1]))


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _write(path: Path, header: Any, data: bytes) -> None:
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


@examples(150)
@given(choices=st.data())
def test_headers_of_safetensors_files(folder: Path, choices: st.DataObject) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    header, data = _header(file)
    try:
        _write(file, choices.draw(edited(header)), data)
        refused(lambda: _read_all(folder), CheckpointError, naming=str(folder))
    finally:
        file.write_bytes(whole)


@examples(150)
@given(choices=st.data())
def test_bytes_of_safetensors_files(folder: Path, choices: st.DataObject) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    try:
        file.write_bytes(choices.draw(damaged(whole, 8 + int.from_bytes(whole[:8], "little") + 64)))
        refused(lambda: _read_all(folder), CheckpointError, naming=str(folder))
    finally:
        file.write_bytes(whole)


@examples(250)
@given(choices=st.data())
def test_configurations(folder: Path, choices: st.DataObject) -> None:
    file = folder / choices.draw(st.sampled_from(["config.json", "config.json", "generation_config.json"]))
    whole = file.read_text()
    try:
        file.write_text(json.dumps(choices.draw(edited(json.loads(whole)))))
        refused(lambda: _read_all(folder), CheckpointError, naming=str(folder))
    finally:
        file.write_text(whole)


@examples(100)
@given(choices=st.data())
def test_indexes(folder: Path, choices: st.DataObject) -> None:
    index = folder / "model.safetensors.index.json"
    header, _ = _header(folder / "model.safetensors")
    names = {name: "model.safetensors" for name in header if name != "__metadata__"}
    odd = ["", ".", "..", "../x.safetensors", "/dev/zero", "\0.safetensors", "x" * 300 + ".safetensors", "config.json"]
    try:
        content = choices.draw(
            st.one_of(
                edited({"weight_map": names, "metadata": {}}),
                st.sampled_from(odd).map(lambda name: {"weight_map": {**names, "model.norm.weight": name}}),
            )
        )
        index.write_text(json.dumps(content))
        refused(lambda: _read_all(folder), CheckpointError, naming=str(folder))
    finally:
        index.unlink(missing_ok=True)


@examples(500)
@given(choices=st.data())
def test_heads_of_gguf_files(gguf: Path, choices: st.DataObject) -> None:
    whole = gguf.read_bytes()
    head = whole.index(b"output_norm.weight") + 50  # the last tensor's entry
    try:
        gguf.write_bytes(choices.draw(damaged(whole, head)))
        refused(lambda: _read_all(gguf), CheckpointError, naming=str(gguf))
    finally:
        gguf.write_bytes(whole)


def test_the_files_are_valid_before_they_are_damaged(folder: Path, gguf: Path) -> None:
    for path in (folder, gguf):
        assert not refused(lambda path=path: _read_all(path), CheckpointError)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json", "tiny.gguf"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "endless"])
def test_what_is_no_file_of_a_model_is_not_waited_for(
    folder: Path, gguf: Path, tmp_path: Path, name: str, kind: str
) -> None:
    for source in [gguf] if name == "tiny.gguf" else folder.iterdir():
        if source.name != name:
            (tmp_path / source.name).symlink_to(source)
    odd = tmp_path / name
    match kind:
        case "pipe":
            os.mkfifo(odd)
        case "device":
            odd.symlink_to("/dev/zero")
        case "folder":
            odd.mkdir()
        case "loop":
            if "index" in name:
                pytest.skip("an index that leads nowhere is none, and the folder has the one file")
            odd.symlink_to(odd)
        case "endless":
            with odd.open("wb") as file:
                file.write(b"GGUF\x03\0\0\0" if name == "tiny.gguf" else (2**40).to_bytes(8, "little"))
                file.truncate(2**41)
    tracemalloc.start()
    try:
        assert refused(lambda: _read_all(tmp_path), CheckpointError, naming=str(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_tensor_in_two_files_and_one_upon_another_are_refused(folder: Path, tmp_path: Path) -> None:
    for source in folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    header, data = _header(folder / "model.safetensors")
    for part in ("a.safetensors", "b.safetensors"):
        _write(tmp_path / part, header, data)
    names = dict.fromkeys(header, "a.safetensors") | {"x": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match="is in two files"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    own = "model.layers.0.input_layernorm.weight"
    header["model.norm.weight"]["data_offsets"] = header[own]["data_offsets"]
    _write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match="overlaps"):
        open_checkpoint(tmp_path)
