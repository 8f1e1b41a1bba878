import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from partitioning.checkpoint import CheckpointError, open_checkpoint
from partitioning.model_spec import RopeSpec
from tests.tiny_models import make_tiny

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def edit(folder: Path, name: str = "config.json", remove: tuple[str, ...] = (), **changes) -> Path:
    path = folder / name
    config = json.loads(path.read_text()) | changes
    for key in remove:
        del config[key]
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.5},
        {"rope_type": "llama3", **LLAMA3},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_rotary_frequencies_are_those_of_transformers(tmp_path, scaling):
    folder = make_tiny(tmp_path, "llama", rope_parameters={"rope_theta": 5000.0, **scaling})
    spec = open_checkpoint(folder).spec
    pairs = torch.arange(0, spec.head_dim, 2) / spec.head_dim
    ours = spec.rope.theta**-pairs / torch.tensor(spec.rope.freq_factors or (1.0,))
    theirs = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "old_scaling", [None, {"type": "linear", "factor": 2.5}, {"rope_type": "llama3", **LLAMA3}], ids=str
)
def test_the_older_spelling_of_rotary_scaling_means_the_same(tmp_path, old_scaling):
    named = {"rope_type": (old_scaling or {}).get("type", "default"), **(old_scaling or {})}
    folder = make_tiny(tmp_path, "llama", rope_parameters={"rope_theta": 5000.0, **named})
    new = open_checkpoint(folder).spec
    edit(folder, remove=("rope_parameters",), rope_theta=5000.0, rope_scaling=old_scaling)
    assert open_checkpoint(folder).spec == new


def test_llama3_scaling_without_an_original_length_falls_back_to_the_model_length(tmp_path):
    scaling = {"rope_theta": 5000.0, "rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 512}
    folder = make_tiny(tmp_path, "llama", rope_parameters=scaling)
    explicit = open_checkpoint(folder).spec
    del scaling["original_max_position_embeddings"]
    assert open_checkpoint(edit(folder, rope_parameters=scaling)).spec == explicit


def test_mistral_slides_over_every_layer_and_a_null_window_over_none(tmp_path):
    folder = make_tiny(tmp_path, "mistral")
    assert open_checkpoint(folder).spec.layer_windows == (8, 8, 8)
    assert open_checkpoint(edit(folder, sliding_window=None)).spec.layer_windows == (0, 0, 0)
    assert open_checkpoint(edit(folder, remove=("sliding_window",))).spec.layer_windows == (4096,) * 3


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_slides_from_max_window_layers_on_unless_layer_types_say_otherwise(tmp_path, family):
    folder = make_tiny(tmp_path, family, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert open_checkpoint(folder).spec.layer_windows == (0, 8, 8)
    assert open_checkpoint(edit(folder, remove=("layer_types",))).spec.layer_windows == (0, 8, 8)
    mixed = ["sliding_attention", "full_attention", "full_attention"]
    assert open_checkpoint(edit(folder, layer_types=mixed)).spec.layer_windows == (8, 0, 0)
    edit(folder, remove=("layer_types",), use_sliding_window=False)
    assert open_checkpoint(folder).spec.layer_windows == (0, 0, 0)


def test_end_tokens_come_from_the_generation_configuration_first(tmp_path):
    folder = make_tiny(tmp_path, "llama")
    edit(folder, "generation_config.json", eos_token_id=[7, 9])
    spec = open_checkpoint(folder).spec
    assert (spec.bos_token_id, spec.eos_token_ids) == (1, (7, 9))
    (folder / "generation_config.json").unlink()
    assert open_checkpoint(folder).spec.eos_token_ids == (2,)
    assert open_checkpoint(edit(folder, eos_token_id=None, bos_token_id=None)).spec.eos_token_ids == ()


def test_absent_keys_have_the_defaults_of_transformers(tmp_path):
    folder = make_tiny(tmp_path, "llama", head_dim=8, num_key_value_heads=9)
    named = open_checkpoint(folder).spec
    optional = ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "dtype")
    assert open_checkpoint(edit(folder, remove=optional)).spec == named
    assert named.rope == RopeSpec(10000.0)


def test_the_older_key_for_the_type_is_understood(tmp_path):
    folder = make_tiny(tmp_path, "llama")
    assert open_checkpoint(edit(folder, remove=("dtype",), torch_dtype="bfloat16")).spec.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; Phalanx runs llama, mistral, qwen2, qwen3"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": "72"}, "hidden_size: .*got '72'"),
        ({"num_hidden_layers": -3}, "num_hidden_layers: .*greater than 0, got -3"),
        ({"num_key_value_heads": 2}, "num_attention_heads 9 is not a multiple of num_key_value_heads 2"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: .*got nan"),
        ({"hidden_act": "gelu"}, "hidden_act: .*got 'gelu'"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"head_dim": None, "hidden_size": 73}, "hidden_size 73 is not a multiple of num_attention_heads 9"),
        ({"attention_bias": True}, "attention_bias true is not supported for llama"),
        ({"mlp_bias": True}, "mlp_bias true"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, "partial_rotary_factor 0.25"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear"}}, "rotary scaling lacks factor"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
            "low_freq_factor 4.0 must be below",
        ),
        ({"quantization_config": {"quant_method": "aqlm"}}, "quantization_config .quant_method 'aqlm'.*gptq, awq are"),
        ({"dtype": "int8"}, "dtype: .*got 'int8'"),
        ({"eos_token_id": [2, -1]}, "eos_token_id.*got -1"),
    ],
)
def test_configurations_that_cannot_be_run_are_refused_by_key(tmp_path, changes, message):
    folder = edit(make_tiny(tmp_path, "llama"), **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
        ({"layer_types": ["sliding_attention"] * 3}, "no sliding_window is in use"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types"),
        ({"attention_bias": True}, "attention_bias true is not supported for qwen3"),
    ],
)
def test_qwen_options_that_cannot_be_run_are_refused_by_key(tmp_path, changes, message):
    folder = edit(make_tiny(tmp_path, "qwen3"), **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        open_checkpoint(folder)


def test_a_missing_size_is_named(tmp_path):
    folder = edit(make_tiny(tmp_path, "llama"), remove=("intermediate_size",))
    with pytest.raises(CheckpointError, match=r"config\.json: intermediate_size: Field required"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_damaged_json_is_refused_by_file(tmp_path, name):
    folder = make_tiny(tmp_path, "llama")
    (folder / name).write_bytes(b'{"vocab_size": 3')
    with pytest.raises(CheckpointError, match=rf"{name} is not valid JSON"):
        open_checkpoint(folder)
