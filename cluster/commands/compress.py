"""`phalanx compress`: a smaller checkpoint of a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from cluster.commands import say
from cluster.models import resolve_model


def compress(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a GGUF file or a known name.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="What to do: a YAML file, or w4a16-gptq, w4a16-rtn, w8a16-rtn, w8a8, 2:4-sparsegpt, half-wanda."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; what an interrupted run left there is gone on with.")],
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Text like that of the model's users. Default: the language reference that Python comes with."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to compute, such as cuda:0; it holds one layer at a time.")
    ] = "cpu",
) -> None:
    """Write a smaller checkpoint of MODEL: quantised, sparse, or with fewer heads, MLP columns and layers.

    phalanx compress smollm2 --recipe w4a16-gptq --out smollm2-w4, then phalanx serve smollm2-w4
    """
    # These import torch, which would make --help wait for seconds.
    import torch

    from cluster.text import TokenizerMissing, load_tokenizer
    from partitioning.checkpoint import open_checkpoint
    from partitioning.compress.recipe import read_recipe
    from partitioning.compress.run import compress as run

    wanted = read_recipe(recipe)
    path = resolve_model(model)
    text = _text(calibration)
    tokens = load_tokenizer(path).encode(text, add_special=False) if wanted.needs_text else []
    with open_checkpoint(path) as checkpoint:
        run(checkpoint, path, wanted, tokens, out, torch.device(device), _bar)
    if path.is_file():
        try:
            load_tokenizer(path).save(out)
        except TokenizerMissing:
            say(f"{path} has no tokenizer, so {out} has none")
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    say(f"{out}: {size / 1e6:,.1f} MB. Serve it with: phalanx serve {out}")


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
