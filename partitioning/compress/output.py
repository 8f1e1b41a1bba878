"""The checkpoint that is written: one file a layer, so that an interrupted run goes on with the next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from partitioning.checkpoint.files import read_json_object
from partitioning.checkpoint.safetensors_files import INDEX_NAME
from partitioning.compress.recipe import CompressionError
from partitioning.whole_files import write_whole

_PROGRESS = "compression-progress.json"
_HIDDEN = "compression-hidden.safetensors"
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def begun(folder: Path) -> bool:
    """Whether a compression to this folder was interrupted."""
    return (folder / _PROGRESS).exists()


class Output:
    """A folder that a checkpoint is written to. `done` are the layers that it has."""

    def __init__(self, folder: Path, identity: str) -> None:
        """`identity` tells one compression from another: what is there of another is not touched.

        Raises CompressionError for a folder that has anything else in it.
        """
        self._folder, self._identity, self.done = folder, identity, 0
        folder.mkdir(parents=True, exist_ok=True)
        progress = folder / _PROGRESS
        if progress.exists():
            fields = read_json_object(progress)
            if fields.get("identity") != identity:
                raise CompressionError(
                    f"{folder} holds a part of another compression (other model, recipe or text): repeat that command "
                    "to finish it, or name another --out"
                )
            self.done = int(fields["done"])
        elif any(folder.iterdir()):
            raise CompressionError(f"{folder} is not empty: name a new folder with --out")
        else:
            self._note()

    def hidden(self) -> Tensor:
        """What the last layer that is done left, [sequences, tokens, hidden]."""
        return load_file(self._folder / _HIDDEN)["hidden"]

    def put_layer(self, tensors: Mapping[str, Tensor], hidden: Tensor | None) -> None:
        """Writes the next layer, and `hidden` for those that come after it."""
        write_tensors(self._folder / f"layer-{self.done:05}.safetensors", tensors)
        if hidden is not None:
            write_tensors(self._folder / _HIDDEN, {"hidden": hidden})
        self.done += 1
        self._note()

    def finish(self, ends: Mapping[str, Tensor], config: Mapping[str, Any], source: Path, recipe: str) -> None:
        """Writes what is beside the layers: `ends`, the index, `config`, the recipe and the tokenizer's files."""
        write_tensors(self._folder / "ends.safetensors", ends)
        files: dict[str, str] = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            if path.name != _HIDDEN:
                with safe_open(path, "pt") as file:
                    files |= dict.fromkeys(file.keys(), path.name)
        size = sum(path.stat().st_size for path in self._folder.glob("*.safetensors") if path.name != _HIDDEN)
        self._save(INDEX_NAME, json.dumps({"metadata": {"total_size": size}, "weight_map": files}, indent=2))
        self._save("config.json", json.dumps(config, indent=2))
        self._save("recipe.yaml", recipe)
        copy_tokenizer(source, self._folder)
        for name in (_HIDDEN, _PROGRESS):
            (self._folder / name).unlink(missing_ok=True)

    def _note(self) -> None:
        self._save(_PROGRESS, json.dumps({"identity": self._identity, "done": self.done}))

    def _save(self, name: str, text: str) -> None:
        write_whole(self._folder / name, f"{text}\n".encode())


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file that is whole or not there."""
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(file, save(contiguous, {"format": "pt"}))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """What the Hugging Face folder `source` has of a tokenizer; nothing of a GGUF file."""
    for name in _TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
