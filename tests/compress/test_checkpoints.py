"""Checkpoints that `compress` writes, from tiny models: transformers opens them, and so does every layout here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from partitioning.checkpoint import open_checkpoint
from partitioning.checkpoint.tensors import model_tensors
from partitioning.compress.recipe import CompressionError, Quantise, Recipe, Sparsify, read_recipe
from partitioning.compress.run import compress
from tests.oracle.references import Reference, prompts_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_models import make_tiny
from tests.tiny_quantised import SIZES
from workers.request import SamplingParams

TEXT = torch.randint(0, 307, (700,), generator=torch.Generator().manual_seed(5)).tolist()
SMALL = {"samples": 8, "tokens": 64}
STEPS = 16
FP8 = {"type": "float", "bits": 8, "group_size": "channel"}


def quietly(numbers: Iterable[int], what: str) -> Iterable[int]:
    return numbers


def run(source: Path, recipe: dict[str, Any] | Recipe, out: Path, progress: Any = quietly, text: Any = TEXT) -> Path:
    wanted = recipe if isinstance(recipe, Recipe) else Recipe.model_validate({"calibration": SMALL} | recipe)
    with open_checkpoint(source) as checkpoint:
        compress(checkpoint, source, wanted, text, out, torch.device("cpu"), progress)
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"), "llama", **SIZES)


def tokens_are_those_of_transformers(folder: Path, tp: int = 2) -> None:
    reference = Reference(folder)
    prompts = prompts_of((5, 21), reference.vocab_size)
    plan = plan_for(folder, tp)
    with thread_replica(plan, config_for(plan)) as replica:
        results = generate(replica, prompts, SamplingParams(max_tokens=STEPS, ignore_eos=True))
    assert [tokens for tokens, _ in results] == [reference.greedy(prompt, STEPS) for prompt in prompts]


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param([{"method": "rtn", "bits": 4, "group_size": 32}], id="w4-rtn"),
        pytest.param([{"method": "gptq", "bits": 4, "group_size": "channel"}], id="w4-gptq-outputs"),
        pytest.param([{"method": "awq", "bits": 8, "group_size": "channel"}], id="w8-awq"),
        pytest.param([{"method": "awq", "bits": 4, "group_size": 32, "symmetric": False}], id="w4-awq-zero-points"),
        pytest.param([{"method": "gptq", "bits": 8, "group_size": 32, "search": True}], id="w8-gptq"),
        pytest.param([FP8 | {"method": "rtn"}], id="fp8-rtn"),
        pytest.param([FP8 | {"method": "gptq"}], id="fp8-gptq"),
        pytest.param([FP8 | {"method": "awq"}], id="fp8-awq"),
        pytest.param(
            [FP8 | {"method": "rtn", "matrices": ["*.mlp.*"]}, {"bits": 4, "group_size": 32}], id="fp8-and-w4"
        ),
        pytest.param(
            [
                {"method": "gptq", "matrices": ["*.mlp.*"], "bits": 4, "group_size": 32},
                {"bits": 8, "group_size": "channel"},
            ],
            id="mixed",
        ),
    ],
)
def test_quantised_checkpoints_open_everywhere(tiny: Path, tmp_path: Path, rules: list[dict[str, Any]]) -> None:
    out = run(tiny, {"quantise": rules}, tmp_path / "out")
    tokens_are_those_of_transformers(out)
    with open_checkpoint(tiny) as before, open_checkpoint(out) as after:
        floats = any(rule.get("type") == "float" for rule in rules)  # these are expanded
        # With 16 bits of scale, and of offset where there is one, for every 32.
        held = [0 if floats else rule["bits"] + (0.5 if rule.get("symmetric", True) else 1) for rule in rules]
        assert min(held) <= after.spec.packed_bits <= max(held)
        for name in model_tensors(before.spec):
            was, is_now = before.read(name), after.read(name)
            if rules[0]["method"] == "awq":  # moves scales from one tensor to another
                continue
            assert (was - is_now).square().mean() < 0.1 * was.square().mean()
    if all(rule["bits"] == 8 for rule in rules):
        (prompt,) = prompts_of((21,), 307)
        was, is_now = (Reference(folder).logits(prompt) for folder in (tiny, out))
        assert (was - is_now).norm() < (0.4 if floats else 0.15) * was.norm()
    assert read_recipe(str(out / "recipe.yaml")).quantise


@pytest.mark.parametrize(("recipe", "kind"), [("w8a8", "int"), ("fp8", "float")])
def test_eight_bit_activations_are_asked_for_in_the_configuration(
    tiny: Path, tmp_path: Path, recipe: str, kind: str
) -> None:
    out = run(
        tiny,
        read_recipe(recipe).model_copy(update={"calibration": Recipe(calibration=SMALL).calibration}),
        tmp_path / "out",
    )  # type: ignore[arg-type]
    quantisation = json.loads((out / "config.json").read_text())["quantization_config"]
    assert quantisation["format"] == f"{kind}-quantized"
    (group,) = quantisation["config_groups"].values()
    for part in ("weights", "input_activations"):
        assert (group[part]["type"], group[part]["num_bits"]) == (kind, 8)
    assert group["input_activations"]["dynamic"] is True
    # transformers rounds activations for each token, so its logits are near, not equal.
    prompt = prompts_of((21,), 307)[0]
    expected = Reference(out).logits(prompt).log_softmax(-1)
    plan = plan_for(out, tp=2)
    with thread_replica(plan, config_for(plan)) as replica:
        ((_, outputs),) = generate(replica, [prompt], SamplingParams(max_tokens=1, logprobs=307))
    ids, values = zip(*outputs[0].logprobs[0].top, strict=True)
    ours = torch.empty(307).index_copy_(0, torch.tensor(ids), torch.tensor(values))
    # Floats are rounded to three bits of mantissa there.
    assert (ours - expected).abs().max() < (0.1 if kind == "int" else 0.2) * expected.abs().max()


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_scales_that_even_out_the_inputs_lose_less_in_eight_bits(tiny: Path, tmp_path: Path, method: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[::37] *= 10
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    wanted = {"method": method, "bits": 8, "group_size": "channel", "activations": 8}
    prompts = prompts_of((33, 21, 50, 64), 307)

    def logits(folder: Path) -> torch.Tensor:
        reference = Reference(folder)
        return torch.stack([reference.logits(prompt) for prompt in prompts])

    expected = logits(source)
    plain, even = (
        logits(run(source, {"quantise": [wanted | {"smooth": smooth}]}, tmp_path / str(smooth)))
        for smooth in (False, True)
    )
    assert (even - expected).norm() < 0.8 * (plain - expected).norm()


def test_floats_of_widths_that_no_group_divides_are_cut_over_ranks(tmp_path: Path) -> None:
    sizes = {"hidden_size": 100, "num_attention_heads": 10, "num_key_value_heads": 5, "intermediate_size": 37}
    source = make_tiny(tmp_path / "source", "qwen2", **sizes)
    out = run(source, {"quantise": [FP8 | {"method": "rtn"}]}, tmp_path / "out")
    for tp in (1, 2, 3):
        tokens_are_those_of_transformers(out, tp)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(family, marks=SLOW) for family in ("qwen2", "qwen3", "mistral"))]
)
def test_seven_of_nine_heads_over_two_ranks(tmp_path: Path, family: str) -> None:
    sizes = {"hidden_size": 126, "head_dim": 14, "num_key_value_heads": 9}
    source = make_tiny(tmp_path / "source", family, **sizes)
    structure = {"kv_heads": 7, "mlp_columns": 61, "layers": 2}
    out = run(source, {"structure": structure}, tmp_path / "out")
    spec = open_checkpoint(out).spec
    assert (spec.num_heads, spec.num_kv_heads, spec.intermediate_size, spec.num_layers) == (7, 7, 61, 2)
    tokens_are_those_of_transformers(out, tp=2)
    tokens_are_those_of_transformers(out, tp=3)


def test_kv_groups_go_with_their_query_heads_and_llamas_of_odd_width_still_open(tmp_path: Path) -> None:
    source = make_tiny(tmp_path / "source", "llama", hidden_size=90, num_attention_heads=10, num_key_value_heads=5)
    out = run(source, {"structure": {"kv_heads": 2}}, tmp_path / "out")
    spec = open_checkpoint(out).spec
    assert (spec.num_heads, spec.num_kv_heads, spec.family) == (4, 2, "mistral")
    assert spec.layer_windows == (0, 0, 0)
    tokens_are_those_of_transformers(out, tp=3)


def test_heads_without_any_effect_are_the_ones_that_go(tmp_path: Path) -> None:
    source = make_tiny(tmp_path / "source", "llama", hidden_size=126, head_dim=14, num_key_value_heads=9)
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    for layer in range(3):
        for head in (2, 5):
            tensors[f"model.layers.{layer}.self_attn.o_proj.weight"][:, head * 14 : head * 14 + 14] = 0
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"][:, 3:30] = 0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    out = run(source, {"structure": {"kv_heads": 7, "mlp_columns": 61, "damping": 1e-9}}, tmp_path / "out")
    prompt = prompts_of((30,), 307)[0]
    torch.testing.assert_close(Reference(out).logits(prompt), Reference(source).logits(prompt), atol=2e-3, rtol=2e-3)


def test_zeros_are_written_as_zeros_and_keep_their_places_under_bits(tiny: Path, tmp_path: Path) -> None:
    recipe = {"sparsify": [{"method": "sparsegpt", "pattern": "2:4"}], "quantise": [{"bits": 4, "group_size": 32}]}
    out = run(tiny, recipe, tmp_path / "out")
    with open_checkpoint(out) as checkpoint:
        weight = checkpoint.read("model.layers.1.mlp.gate_proj.weight")
    assert ((weight.view(-1, 4) == 0).sum(dim=1) >= 2).all()
    tokens_are_those_of_transformers(out)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    recipe = {"structure": {"mlp_columns": 128}, "quantise": [{"bits": 4, "group_size": 32}]}
    whole = run(tiny, recipe, tmp_path / "whole")

    def for_a_while(numbers: Iterable[int], what: str) -> Iterable[int]:
        for number in numbers:
            if number == 2:
                raise Interrupted
            yield number

    with pytest.raises(Interrupted):
        run(tiny, recipe, tmp_path / "part", for_a_while)
    with pytest.raises(CompressionError, match="part of another compression"):
        run(tiny, recipe | {"quantise": [{"bits": 8, "group_size": 32}]}, tmp_path / "part")
    began: list[int] = []

    def watched(numbers: Iterable[int], what: str) -> Iterable[int]:
        began.extend(numbers)
        return began

    run(tiny, recipe, tmp_path / "part", watched)
    assert began == [2]
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == names
    for name in names:
        assert (tmp_path / "part" / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(CompressionError, match="not empty"):
        run(tiny, recipe, whole)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "does nothing"),
        (
            {"quantise": [{"matrices": ["*.q_porj"]}]},
            r"\*\.q_porj names no matrix .* called model\.layers\.0\.self_attn",
        ),
        ({"quantise": [{"group_size": 128}]}, "group_size 128 does not divide the 288 inputs .* use 32 or channel"),
        ({"structure": {"kv_heads": 4}}, "structure.kv_heads 4 is more than the model's 3"),
        (
            {"quantise": [{"group_size": 32}], "calibration": {"samples": 8, "tokens": 100}},
            "has 700 tokens, the recipe asks for 8 samples of 100: give a longer --calibration",
        ),
        ({"sparsify": [{"pattern": "2:4"}], "structure": {"mlp_columns": 37}}, "2:4 does not divide the 37 inputs"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompressionError, match=message):
        run(tiny, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantise: [{bits: 5}]", r"quantise\.0\.bits"),
        ("quantize: []", "quantize: Extra inputs"),
        ("quantise: [{activations: 8}]", "activations: 8 needs bits: 8"),
        ("quantise: [{type: float}]", r"quantise\.0: .*type: float needs bits: 8, group_size: channel and symmetric"),
        ("quantise: [{type: float, bits: 8, group_size: 32}]", "type: float needs .*group_size: channel"),
        (
            "quantise: [{}, {type: float, bits: 8, group_size: channel, symmetric: false}]",
            r"quantise\.1: .*type: float needs .*symmetric: true",
        ),
        ("sparsify: [{pattern: '2:4', ratio: 0.3}]", "pattern 2:4 is a ratio of 0.5"),
        ("a: [", "is not YAML"),
        ("3", "recipe: "),
    ],
)
def test_recipes_that_are_malformed_are_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(CompressionError, match=message):
        read_recipe(str(file))
    with pytest.raises(CompressionError, match=r"neither a named recipe .*w4a16-gptq"):
        read_recipe("w3a16")


def test_of_several_rules_the_first_counts() -> None:
    recipe = Recipe(quantise=(Quantise(bits=8),), sparsify=(Sparsify(method="magnitude"),))
    assert recipe.needs_text
    assert not Recipe(quantise=(Quantise(method="rtn"),)).needs_text
