"""Quantised folders from anybody: each is refused with a CheckpointError, or can be read to its last byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioning.checkpoint import CheckpointError, open_checkpoint
from partitioning.checkpoint.tensors import model_tensors
from partitioning.plan import Span
from tests.fuzz.examples import examples, refused
from tests.fuzz.mutations import edited
from tests.tiny_quantised import make_awq, make_compressed, make_gptq

_TINY = {"num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
_FOUR = {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("quantised")
    return {
        "packed": make_compressed(made / "packed", _FOUR, "pack-quantized", **_TINY, **_HEADS),
        "plain": make_compressed(
            made / "plain", {"num_bits": 8, "strategy": "channel"}, "int-quantized", **_TINY, **_HEADS
        ),
        "gptq": make_gptq(made / "gptq", 4, 16, symmetric=True, ordered=True, **_TINY, **_HEADS),
        "awq": make_awq(made / "awq", 16, **_TINY, **_HEADS),
    }


def _read_all(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for name, shape in model_tensors(checkpoint.spec).items():
            assert tuple(checkpoint.read(name).shape) == shape
            checkpoint.read_quantised(name)
            if len(shape) == 2:
                checkpoint.read(name, rows=Span(1, 2), cols=Span(shape[1] - 1, shape[1]))


@pytest.mark.parametrize("name", ["packed", "plain", "gptq", "awq"])
@examples(60)
@given(choices=st.data())
def test_configurations(folders: dict[str, Path], name: str, choices: st.DataObject) -> None:
    file = folders[name] / "config.json"
    whole = file.read_text()
    fields = json.loads(whole)
    try:
        fields["quantization_config"] = choices.draw(edited(fields["quantization_config"]))
        file.write_text(json.dumps(fields))
        refused(lambda: _read_all(folders[name]), CheckpointError, naming=str(folders[name]))
    finally:
        file.write_text(whole)


@pytest.mark.parametrize("name", ["packed", "plain", "gptq", "awq"])
@examples(60)
@given(choices=st.data())
def test_headers(folders: dict[str, Path], name: str, choices: st.DataObject) -> None:
    file = folders[name] / "model.safetensors"
    whole = file.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    try:
        raw = json.dumps(choices.draw(edited(json.loads(whole[8:end])))).encode()
        file.write_bytes(len(raw).to_bytes(8, "little") + raw + whole[end:])
        refused(lambda: _read_all(folders[name]), CheckpointError)
    finally:
        file.write_bytes(whole)
