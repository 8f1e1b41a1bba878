"""The folder of a distillation: while it goes on, what is needed to go on; in the end, a checkpoint.

Everything is JSON or safetensors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from partitioning.checkpoint.files import read_json_object
from partitioning.checkpoint.safetensors_files import SINGLE_NAME
from partitioning.compress.output import copy_tokenizer, write_tensors
from partitioning.distil.settings import DistilError
from partitioning.whole_files import write_whole

_IDENTITY, _PROGRESS = "distillation.json", "progress.json"
LOG = "distillation.json"


class Folder:
    """`unfinished` is a folder within `out` for whatever a training needs until it ends."""

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        """`identity` tells one distillation from another. Raises DistilError for a folder with anything else in it."""
        self._out, self.unfinished, self.identity = out, out / "unfinished", dict(identity)
        file = self.unfinished / _IDENTITY
        if file.exists():
            theirs = read_json_object(file)
            different = sorted(key for key in identity if theirs.get(key) != identity[key])
            if different:
                raise DistilError(
                    f"{out} holds a part of another distillation, whose {', '.join(different)} differ: repeat that "
                    "command to finish it, or name another --out"
                )
        elif out.exists() and any(out.iterdir()):
            raise DistilError(f"{out} is not empty: name a new folder with --out")
        else:
            self.unfinished.mkdir(parents=True)
            write_whole(file, json.dumps(self.identity, indent=2).encode())

    def save(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """One after the other: the number in a name says which file belongs to which progress."""
        name = f"step-{progress['step']}.safetensors"
        write_tensors(self.unfinished / name, tensors)
        write_whole(self.unfinished / _PROGRESS, json.dumps(dict(progress)).encode())
        for old in self.unfinished.glob("step-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last."""
        file = self.unfinished / _PROGRESS
        if not file.exists():
            return None
        progress = read_json_object(file)
        return load_file(self.unfinished / f"step-{progress['step']}.safetensors"), progress

    def finish(
        self,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, Any],
        tokenizer: Path,
        log: Mapping[str, Any],
        plot: str,
    ) -> None:
        """Writes the checkpoint with the tokenizer's files of the folder `tokenizer`, the log and the plot."""
        copy_tokenizer(tokenizer, self._out)
        write_tensors(self._out / SINGLE_NAME, tensors)
        write_whole(self._out / "config.json", json.dumps(dict(config), indent=2).encode())
        write_whole(self._out / LOG, json.dumps(dict(log), indent=1).encode())
        write_whole(self._out / "distillation.svg", plot.encode())
        shutil.rmtree(self.unfinished)


def optimiser_tensors(names: Sequence[str], state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of a torch optimiser over parameters of these names, flat."""
    return {
        f"{key}:{names[number]}": value for number, fields in state["state"].items() for key, value in fields.items()
    }


def optimiser_state(names: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The reverse."""
    state: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(names))}
    for name, tensor in tensors.items():
        key, of, parameter = name.partition(":")
        if of:
            state[names.index(parameter)][key] = tensor
    return state
