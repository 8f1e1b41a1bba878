"""Bits for every product under a budget, and a recipe that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, log

import torch

from partitioning.checkpoint import Checkpoint
from partitioning.compress.reader import ModelReader
from partitioning.compress.recipe import Calibration, CompressionError, Quantise
from partitioning.compress.run import calibration_windows
from partitioning.compress.sensitivity import Product, Sensitivity
from partitioning.costs import parameter_bytes
from partitioning.model_spec import ModelSpec

MEASURED = Calibration(samples=8, tokens=128)


@dataclass(frozen=True)
class Budget:
    """`loss`: how much perplexity may grow, as a part of it. `bytes`: what the weights may take in memory; `speed`: by
    how much a decode step of one sequence, which reads all of them, should be quicker than with 16-bit ones."""

    loss: float
    bytes: int | None = None
    speed: float | None = None


@dataclass(frozen=True)
class Choice:
    """`four` and `eight`: the products in each. `cost`: the divergence to expect, in nats; `size`: bytes in memory."""

    four: tuple[Product, ...]
    eight: tuple[Product, ...]
    cost: float
    size: int


@torch.inference_mode()
def automatic_recipe(
    checkpoint: Checkpoint,
    text: Sequence[int],
    budget: Budget,
    device: torch.device,
    progress: Callable[[Iterable[int], str], Iterable[int]],
) -> str:
    """The text of a recipe, with the reasons as comments. `text` are the tokens of the calibration text, of which
    little is measured over; the recipe asks for the usual amount, or for what there is.

    Raises:
        CompressionError: no choice of bits keeps the budget, or the text is too short.
    """
    spec = checkpoint.spec
    windows = calibration_windows(text, MEASURED, spec.max_position)
    usual, longest = Calibration(), spec.max_position
    tokens = min(usual.tokens, longest)
    calibration = Calibration(samples=min(usual.samples, len(text) // tokens), tokens=tokens)
    sensitivity = Sensitivity(ModelReader(checkpoint, device), windows)
    size = group_size(spec)
    products = sensitivity.products(Quantise(method="rtn", bits=4, group_size=size), progress)
    eight = sensitivity.of_all(Quantise(method="rtn", bits=8, group_size=size))
    return recipe_text(choose(products, eight, spec, budget), budget, spec, eight, size, calibration)


def group_size(spec: ModelSpec) -> int:
    """The largest usual size that divides the inputs of all products."""
    widths = (spec.hidden_size, spec.num_heads * spec.head_dim, spec.intermediate_size)
    for size in (128, 64, 32):
        if all(width % size == 0 for width in widths):
            return size
    raise CompressionError(
        f"no group of 128, 64 or 32 divides the widths {', '.join(map(str, widths))} of {spec.name}: write a recipe "
        "with group_size: channel"
    )


def choose(products: Sequence[Product], eight: float, spec: ModelSpec, budget: Budget) -> Choice:
    """Four bits for the products that lose least for each weight, one after the other: as few as a size asks for, or as
    many as the loss allows. `eight`: the divergence with all of them in 8 bits, as they are at first.

    Raises:
        CompressionError: the loss does not allow the size.
    """
    allowed, most = log(1 + budget.loss), _most_bytes(spec, budget)
    by_price = sorted(products, key=lambda product: product.cost / product.weights)
    count = sum(product.weights for product in products)
    share = {product: eight * product.weights / count for product in products}
    four: list[Product] = []
    cost, size = eight, _size(products, (), spec)
    for product in by_price:
        more = product.cost - share[product]
        if (most is not None and size <= most) or cost + more > allowed:
            break
        four.append(product)
        cost += more
        size = _size(products, four, spec)
    if most is not None and size > most and len(four) == len(products):
        raise CompressionError(
            f"with everything in 4 bits the weights of {spec.name} take {size / 1e6:.1f} MB, not {most / 1e6:.1f} MB: "
            "remove heads, columns or layers first, with a recipe that has a structure"
        )
    if cost > allowed or (most is not None and size > most):
        wanted = "" if most is None else f", not {most / 1e6:.1f} MB"
        raise CompressionError(
            f"a loss of {budget.loss:.2%} leaves the weights of {spec.name} at {size / 1e6:.1f} MB{wanted} "
            f"(8 bits alone cost {exp(eight) - 1:.2%}): allow more --max-loss"
        )
    eights = tuple(product for product in products if product not in four)
    return Choice(tuple(product for product in products if product in four), eights, cost, size)


def _most_bytes(spec: ModelSpec, budget: Budget) -> int | None:
    if budget.bytes is not None:
        return budget.bytes
    return None if budget.speed is None else int(_dense_bytes(spec) / budget.speed)


def _table_bytes(spec: ModelSpec) -> int:
    """Of embedding and head, which stay as they are."""
    return 2 * spec.vocab_size * spec.hidden_size * (1 if spec.tied_head else 2)


def _dense_bytes(spec: ModelSpec) -> int:
    width = spec.head_dim * (2 * spec.num_heads + 2 * spec.num_kv_heads) + 3 * spec.intermediate_size
    return _table_bytes(spec) + 2 * spec.num_layers * spec.hidden_size * width


def _size(products: Sequence[Product], four: Sequence[Product], spec: ModelSpec) -> int:
    """Bytes in memory: groups of 32 with a scale of 16 bits."""
    fours = sum(product.weights for product in four)
    eights = sum(product.weights for product in products) - fours
    return _table_bytes(spec) + int(fours * 4.5 / 8 + eights * parameter_bytes("bfloat16", "int8").layer)


def recipe_text(
    choice: Choice, budget: Budget, spec: ModelSpec, eight: float, size: int, calibration: Calibration
) -> str:
    """YAML that `read_recipe` reads."""
    wanted = f"perplexity may grow by {budget.loss:.2%} ({log(1 + budget.loss):.4f} nats)"
    if budget.bytes is not None:
        wanted += f", the weights may take {budget.bytes / 1e6:.1f} MB"
    if budget.speed is not None:
        wanted += f", a decode step should be {budget.speed:g} × as quick as in 16 bits: its time is that of its bytes"
    lines = [
        f"# For {spec.name}: {wanted}.",
        f"# Expected: {choice.cost:.4f} nats, {choice.size / 1e6:.1f} of {_dense_bytes(spec) / 1e6:.1f} MB in memory.",
        "# Measured: how far the model's predictions diverge, in nats a token, when one product alone is rounded to 4",
        f"# bits. All of them in 8 bits diverge by {eight:.4f}. The sum of such costs is a guess: GPTQ, which the",
        "# rules ask for, loses less than rounding, and errors of several layers may add to more.",
        "# Zeros are not chosen: with half of its weights zero a product takes 9 bits a weight, more than in 8 bits,",
        "# and loses far more.",
        "# Move a line from one rule to the other to change its bits.",
        f"calibration: {{samples: {calibration.samples}, tokens: {calibration.tokens}}}",
        "quantise:",
    ]
    for bits, products in ((4, choice.four), (8, choice.eight)):
        if not products:
            continue
        lines += [f"- method: gptq\n  bits: {bits}\n  group_size: {size}\n  search: true", "  matrices:"]
        for product in products:
            lines.append(f"  # {product.cost:.5f} nats in 4 bits, {product.weights / 1e6:.2f} million weights")
            lines += [f"  - {stem}" for stem in product.stems]
    return "\n".join(lines) + "\n"
