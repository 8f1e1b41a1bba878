"""The checkpoints of the techniques, each made once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.techniques.calibration import calibration_text
from benchmarks.techniques.rows import AS_IT_IS, RECIPES
from cluster.text import load_tokenizer
from partitioning.checkpoint import open_checkpoint
from partitioning.compress.run import compress


class Checkpoints:
    """Of `model`, in folders below `out`. `text` is a file to calibrate on; None: what the model writes itself."""

    def __init__(self, model: Path, out: Path, text: Path | None) -> None:
        self._model, self._out, self._text = model, out, text

    def path(self, name: str) -> Path:
        """Of a row's checkpoint; makes it where that was not done. An interrupted one is gone on with."""
        if name == AS_IT_IS:
            return self._model
        if name not in RECIPES:
            return Path(name)
        folder = self._out / "checkpoints" / name
        if not (folder / "recipe.yaml").exists():
            self._make(name, folder)
        return folder

    def _make(self, name: str, folder: Path) -> None:
        tokenizer = load_tokenizer(self._model)
        with open_checkpoint(self._model) as checkpoint:
            recipe = RECIPES[name](checkpoint.spec)
            text = tokenizer.encode(self._calibration(), add_special=False) if recipe.needs_text else []

            def progress(numbers: Iterable[int], what: str) -> Iterable[int]:
                return tqdm(numbers, desc=f"{name}: {what}", unit="layer")

            compress(checkpoint, self._model, recipe, text, folder, torch.device("cpu"), progress)
        if self._model.is_file():
            tokenizer.save(folder)

    def _calibration(self) -> str:
        if self._text is not None:
            return self._text.read_text(encoding="utf-8")
        file = self._out / "calibration.txt"
        if not file.exists():
            print("writing the calibration text", flush=True)
            file.write_text(calibration_text(self._model), encoding="utf-8")
        return file.read_text(encoding="utf-8")
