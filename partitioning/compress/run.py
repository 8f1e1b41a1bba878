"""The whole of a compression: layer after layer, of which one is in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import yaml
from torch import Tensor

from partitioning.checkpoint import Checkpoint
from partitioning.compress.config import smaller_config
from partitioning.compress.forward import Layer
from partitioning.compress.layer import SmallerLayer
from partitioning.compress.output import Output
from partitioning.compress.reader import ModelReader
from partitioning.compress.recipe import Calibration, CompressionError, Recipe, applied
from partitioning.compress.structure import influence, smaller

Item = TypeVar("Item")
# Called with a range and what it is of: a progress bar.
Progress = Callable[[Iterable[int], str], Iterable[int]]


@torch.inference_mode()
def compress(
    checkpoint: Checkpoint,
    source: Path,
    recipe: Recipe,
    text: Sequence[int],
    out: Path,
    device: torch.device,
    progress: Progress,
) -> None:
    """Writes the checkpoint that `recipe` makes of `checkpoint`, which `source` holds, to `out`. `text` are the tokens
    of the calibration text. An interrupted run, begun again with the same arguments, goes on with the next layer.

    Raises:
        CompressionError: the recipe does not fit the model, the text is too short, or `out` is taken.
    """
    spec = checkpoint.spec
    work = applied(recipe, spec, smaller(spec, recipe.structure))
    config = smaller_config(source, work)
    windows = calibration_windows(text, recipe.calibration, spec.max_position) if recipe.needs_text else None
    output = Output(out, _identity(source, recipe, windows))
    reader = ModelReader(checkpoint, device)
    kept = list(range(spec.num_layers))
    if work.shape.num_layers < spec.num_layers:
        assert windows is not None
        kept = _kept_layers(reader, windows, work.shape.num_layers, progress)
    hidden: Tensor | None = None
    if windows is not None:
        hidden = output.hidden().to(device) if output.done else reader.embedded(windows)
    for number in progress(range(output.done, len(kept)), "compressing"):
        layer = SmallerLayer(work, spec, number, spec.layer_windows[kept[number]], reader.layer(kept[number]), hidden)
        output.put_layer(layer.run(), hidden)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    written = yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False)
    output.finish({name: tensor.to(dtype) for name, tensor in reader.ends().items()}, config, source, written)


def calibration_windows(text: Sequence[int], wanted: Calibration, longest: int) -> Tensor:
    """int64 [samples, tokens], spread evenly over the text. Raises CompressionError where it is too short."""
    samples, tokens = wanted.samples, min(wanted.tokens, longest)
    if len(text) < samples * tokens:
        raise CompressionError(
            f"the calibration text has {len(text)} tokens, the recipe asks for {samples} samples of {tokens}: give a "
            "longer --calibration, or lower calibration.samples or calibration.tokens in the recipe"
        )
    starts = [i * (len(text) - tokens) // max(samples - 1, 1) for i in range(samples)]
    return torch.tensor([text[start : start + tokens] for start in starts])


def _kept_layers(reader: ModelReader, windows: Tensor, count: int, progress: Progress) -> list[int]:
    """The layers that change their input most, in their order."""
    spec, hidden = reader.spec, reader.embedded(windows)
    influences = []
    for number in progress(range(spec.num_layers), "weighing layers"):
        layer, changes = Layer(spec, spec.layer_windows[number], reader.layer(number)), []
        for chunk in torch.split(hidden, 1):
            before = chunk.clone()
            chunk += layer.out(layer.attention(layer.attention_inputs(chunk)))
            chunk += layer.down(layer.columns(layer.mlp_inputs(chunk)))
            changes.append(influence(before, chunk))
        influences.append(sum(changes) / len(changes))
    by_influence = sorted(range(spec.num_layers), key=lambda number: influences[number], reverse=True)
    return sorted(by_influence[:count])


def _identity(source: Path, recipe: Recipe, windows: Tensor | None) -> str:
    said = [str(source.resolve()), recipe.model_dump_json()]
    digest = hashlib.sha256("\0".join(said).encode())
    if windows is not None:
        digest.update(windows.numpy().tobytes())
    return digest.hexdigest()
