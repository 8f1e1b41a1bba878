"""Bits chosen by measurement, under a budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from partitioning.checkpoint import open_checkpoint
from partitioning.compress.choice import Budget, automatic_recipe, choose
from partitioning.compress.reader import ModelReader
from partitioning.compress.recipe import CompressionError, Quantise, applied, read_recipe
from partitioning.compress.run import calibration_windows
from partitioning.compress.sensitivity import Product, Sensitivity
from tests.compress.test_checkpoints import quietly
from tests.tiny_models import make_tiny
from tests.tiny_quantised import SIZES

WINDOWS = torch.randint(0, 307, (2, 48), generator=torch.Generator().manual_seed(5))
TEXT = torch.randint(0, 307, (1300,), generator=torch.Generator().manual_seed(6)).tolist()
FOUR = Quantise(method="rtn", bits=4, group_size=32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"), "llama", **SIZES)


def test_a_layer_that_only_adds_nothing_costs_nothing_and_others_do(tiny: Path) -> None:
    with open_checkpoint(tiny) as checkpoint, torch.inference_mode():
        reader = ModelReader(checkpoint, torch.device("cpu"))
        read = reader.layer
        reader.layer = lambda number: {  # type: ignore[method-assign]
            name: tensor * 0 if number == 1 and "mlp.up" in name else tensor for name, tensor in read(number).items()
        }
        sensitivity = Sensitivity(reader, WINDOWS)
        products = {product.stems[0]: product for product in sensitivity.products(FOUR, quietly)}
        everything = sensitivity.of_all(FOUR)
    assert len(products) == 12
    assert products["model.layers.1.mlp.gate_proj"].cost == pytest.approx(0, abs=1e-4)
    assert products["model.layers.1.mlp.down_proj"].cost == pytest.approx(0, abs=1e-4)
    rest = [product.cost for stem, product in products.items() if ".1.mlp" not in stem]
    assert min(rest) > 1e-3
    assert everything > max(rest)


def test_what_costs_least_for_its_size_gets_four_bits_until_the_budget_is_kept(tiny: Path) -> None:
    spec = open_checkpoint(tiny).spec
    products = [Product((f"m{number}",), 1000 * (1 + number % 2), 0.001 * number) for number in range(6)]
    loose = choose(products, 0.0006, spec, Budget(loss=1.0))
    assert loose.eight == ()
    tight = choose(products, 0.0006, spec, Budget(loss=0.004))
    assert [product.stems[0] for product in tight.four] == ["m0", "m1", "m3"][: len(tight.four)]
    assert tight.cost <= 0.004
    assert tight.size > loose.size
    by_size = choose(products, 0.0006, spec, Budget(loss=1.0, bytes=tight.size))
    assert by_size.size <= tight.size
    with pytest.raises(CompressionError, match=r"a loss of 0\.01% leaves .* allow more --max-loss"):
        choose(products, 0.0006, spec, Budget(loss=0.0001))
    with pytest.raises(CompressionError, match=r"everything in 4 bits .* not 0\.1 MB"):
        choose(products, 0.0006, spec, Budget(loss=1.0, bytes=100_000))


@pytest.mark.parametrize("budget", [Budget(loss=0.02), Budget(loss=9.0, speed=1.5), Budget(loss=9.0, bytes=10**6)])
def test_the_recipe_can_be_read_and_covers_every_matrix_once(tiny: Path, tmp_path: Path, budget: Budget) -> None:
    with open_checkpoint(tiny) as checkpoint:
        spec = checkpoint.spec
        text = automatic_recipe(checkpoint, TEXT, budget, torch.device("cpu"), quietly)
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    recipe = read_recipe(str(file))
    calibration_windows(TEXT, recipe.calibration, spec.max_position)  # which refuses what the text is too short for
    work = applied(recipe, spec, spec)
    assert len(work.quantise) == 21
    assert text.startswith(f"# For {spec.name}: perplexity may grow by")
    assert text.count("nats in 4 bits") == 12
    for layer in range(3):
        kinds = {work.quantise[f"model.layers.{layer}.self_attn.{name}_proj"].bits for name in "qkv"}
        assert len(kinds) == 1
    if budget.loss < 1:
        assert {rule.bits for rule in work.quantise.values()} == {4, 8}


def test_widths_without_a_usual_group_are_refused_with_the_remedy(tiny: Path, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path, "llama")
    with open_checkpoint(folder) as checkpoint, pytest.raises(CompressionError, match="group_size: channel"):
        automatic_recipe(checkpoint, TEXT, Budget(loss=1.0), torch.device("cpu"), quietly)
