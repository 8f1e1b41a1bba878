"""`phalanx compress`: a smaller checkpoint of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from cluster.commands import say
from cluster.models import resolve_model
from cluster.sole_writer import sole_writer

if TYPE_CHECKING:
    from partitioning.compress.choice import Budget
    from partitioning.compress.recipe import Recipe

_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}
_ZEROS = (
    "where at least 5 of 16 weights are zero, CPUs with AVX-512 leave zeros out when they load a product in bf16: with "
    "half of them it takes 9 bits a weight, not 16. The file has them all. 8 bits take as little and lose far less"
)
_ZEROS_IN_BITS = (
    "zeros under 4 or 8 bits are stored and computed like other codes, so they make these products neither smaller nor "
    "quicker. Do without them, or without the bits"
)


def compress(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a GGUF file or a known name.")],
    out: Annotated[Path, typer.Option(help="The folder to write; what an interrupted run left there is gone on with.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="What to do: a YAML file, or w4a16-gptq, w4a16-awq, w4a16-rtn, w8a16-rtn, w8a8, "
            "fp8, 2:4-sparsegpt, half-wanda."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Text like that of the model's users. Default: the language reference that Python comes with."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to compute, such as cuda:0; it holds one layer at a time.")
    ] = "cpu",
    auto: Annotated[
        bool, typer.Option("--auto", help="Measure every layer and choose its bits; the recipe is written to OUT.yaml.")
    ] = False,
    max_loss: Annotated[
        str | None, typer.Option(help="With --auto: how much perplexity may grow, such as 0.5%.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="With --auto: what the weights may take, such as 100MB.")] = None,
    speed: Annotated[str | None, typer.Option(help="With --auto: how much quicker to decode, such as 2x.")] = None,
) -> None:
    """Write a smaller checkpoint of MODEL: quantised, sparse, or with fewer heads, MLP columns and layers.

    phalanx compress smollm2 --recipe w4a16-gptq --out smollm2-w4, then phalanx serve smollm2-w4
    """
    if auto == (recipe is not None):
        raise typer.BadParameter("give either --recipe, or --auto with --max-loss")
    budget = _budget(max_loss, memory, speed) if auto else None
    if not auto and (max_loss or memory or speed):
        raise typer.BadParameter("--max-loss, --memory and --speed are for --auto")
    context.with_resource(sole_writer(out))
    # These import torch, which would make --help wait for seconds.
    import torch

    from cluster.text import TokenizerMissing, load_tokenizer
    from partitioning.checkpoint import open_checkpoint
    from partitioning.compress.output import begun
    from partitioning.compress.recipe import CompressionError, read_recipe
    from partitioning.compress.run import compress as run

    wanted = None if recipe is None else read_recipe(recipe)
    path = resolve_model(model)
    tokens: list[int] = []
    if wanted is None or wanted.needs_text:
        tokens = load_tokenizer(path).encode(_text(calibration), add_special=False)
    with open_checkpoint(path) as checkpoint:
        if wanted is None:
            assert budget is not None
            file = out.with_name(f"{out.name}.yaml")
            if not begun(out):
                if file.exists():
                    raise CompressionError(f"{file} is there already: use it with --recipe, or remove it")
                from partitioning.compress.choice import automatic_recipe

                file.write_text(automatic_recipe(checkpoint, tokens, budget, torch.device(device), _bar))
            say(f"{file} says which bits were chosen and why; edit it and use it with --recipe")
            wanted = read_recipe(str(file))
        run(checkpoint, path, wanted, tokens, out, torch.device(device), _bar)
    if path.is_file():
        try:
            load_tokenizer(path).save(out)
        except TokenizerMissing:
            say(f"{path} has no tokenizer, so {out} has none")
    _report(out, wanted)


def _report(out: Path, recipe: Recipe) -> None:
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    say(f"{out}: {size / 1e6:,.1f} MB. Serve it with: phalanx serve {out}")
    if recipe.sparsify:
        kept = any(rule.type == "int" for rule in recipe.quantise)  # floats are expanded when they are loaded
        say(_ZEROS_IN_BITS if kept else _ZEROS)


def _budget(max_loss: str | None, memory: str | None, speed: str | None) -> Budget:
    from partitioning.compress.choice import Budget

    if max_loss is None:
        raise typer.BadParameter("--auto needs --max-loss, such as 0.5%")
    if memory and speed:
        raise typer.BadParameter("give either --memory or --speed")
    loss = _number(max_loss, r"([0-9.]+)%", "--max-loss", "0.5%") / 100
    size = None
    if memory is not None:
        unit = memory[-2:].upper()
        size = int(_number(memory, r"([0-9.]+) ?[KMGkmg][Bb]", "--memory", "100MB") * _UNITS.get(unit, 0))
    return Budget(loss, size, None if speed is None else _number(speed, r"([0-9.]+)x", "--speed", "2x"))


def _number(text: str, pattern: str, option: str, example: str) -> float:
    found = re.fullmatch(pattern, text)
    try:
        number = 0.0 if found is None else float(found[1])
    except ValueError:
        number = 0.0
    if number <= 0:
        raise typer.BadParameter(f"{option} {text} must be like {example}")
    return number


def _text(file: Path | None) -> str:
    if file is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics.values())
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--calibration {file} cannot be read as text ({error})") from error


def _bar(numbers: Iterable[int], what: str) -> Iterable[int]:
    return tqdm(numbers, desc=what, unit="layer")
