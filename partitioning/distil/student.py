"""What a student is before it learns: some of its teacher's layers, a new model, or a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from partitioning.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from partitioning.checkpoint.files import read_json_object
from partitioning.checkpoint.hf_config import read_hf_config
from partitioning.checkpoint.tensors import model_tensors
from partitioning.compress.config import smaller_config
from partitioning.compress.recipe import Recipe, Work
from partitioning.distil.decoder import EMBEDDING, HEAD
from partitioning.distil.settings import DistilError
from partitioning.model_spec import ModelSpec

_SPREAD = 0.02  # of new weights, as in GPT-2 and most models after it


@dataclass(frozen=True)
class Student:
    """`config` is its config.json, `tensors` are its weights in float32. Those that are `frozen` are the teacher's own
    embedding and head: trained, they would cost as much as all layers of a small model."""

    spec: ModelSpec
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    frozen: frozenset[str]


def read_student(teacher: Checkpoint, source: Path, layers: int | None, path: Path | None, seed: int) -> Student:
    """`layers` of the teacher's, which `source` holds, or what `path` describes. Raises as those two do."""
    if path is not None:
        return from_path(path, teacher, seed)
    assert layers is not None
    return from_layers(teacher, source, layers)


def from_layers(teacher: Checkpoint, source: Path, layers: int) -> Student:
    """`layers` of the teacher's, evenly spaced from the first to the last. Raises DistilError."""
    spec = teacher.spec
    if not 1 <= layers < spec.num_layers:
        raise DistilError(
            f"--layers {layers} must be from 1 to {spec.num_layers - 1}: the teacher has {spec.num_layers}"
        )
    shape = replace(spec, num_layers=layers, layer_windows=spec.layer_windows[:layers])
    kept = [round(i * (spec.num_layers - 1) / max(layers - 1, 1)) for i in range(layers)]
    tensors = {}
    for name in model_tensors(shape):
        stored = name
        if name.startswith("model.layers."):
            number, _, rest = name.removeprefix("model.layers.").partition(".")
            stored = f"model.layers.{kept[int(number)]}.{rest}"
        tensors[name] = teacher.read(stored).float()
    return Student(shape, _config(source, shape), tensors, frozenset(tensors) & {EMBEDDING, HEAD})


def from_path(path: Path, teacher: Checkpoint, seed: int) -> Student:
    """A checkpoint as it is, or the new model that a config.json, or the folder around it, describes.

    Raises:
        DistilError: its vocabulary is not the teacher's.
        CheckpointError: it cannot be read.
    """
    described = path if path.is_file() and path.suffix == ".json" else path / "config.json"
    if path == described or (path.is_dir() and not list(path.glob("*.safetensors")) and described.exists()):
        return _new(described, teacher, seed)
    with open_checkpoint(path) as checkpoint:
        _check_vocabulary(path, checkpoint.spec, teacher.spec)
        tensors = {name: checkpoint.read(name).float() for name in model_tensors(checkpoint.spec)}
        spec = replace(checkpoint.spec, packed_bits=0, gpu_packed_bits=0)
    return Student(spec, _config(path, spec), tensors, _shared(spec, tensors, teacher))


def _new(described: Path, teacher: Checkpoint, seed: int) -> Student:
    """Random layers; embedding and head are the teacher's where they fit."""
    fields = read_json_object(described)
    with TemporaryDirectory() as folder:
        shutil.copyfile(described, Path(folder) / "config.json")
        try:
            spec = read_hf_config(Path(folder), has_own_head=False, stored_dtype=teacher.spec.dtype)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(f"{folder}/config.json", str(described))) from error
    _check_vocabulary(described, spec, teacher.spec)
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in model_tensors(spec).items():
        if len(shape) == 2:
            tensors[name] = torch.randn(shape, generator=random) * _SPREAD
        else:
            tensors[name] = torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
    if spec.hidden_size == teacher.spec.hidden_size and spec.tied_head == teacher.spec.tied_head:
        tensors |= {name: teacher.read(name).float() for name in (EMBEDDING, HEAD) if name in tensors}
    return Student(spec, fields, tensors, _shared(spec, tensors, teacher))


def _shared(spec: ModelSpec, tensors: Mapping[str, Tensor], teacher: Checkpoint) -> frozenset[str]:
    if spec.hidden_size != teacher.spec.hidden_size or spec.tied_head != teacher.spec.tied_head:
        return frozenset()
    ends = [name for name in (EMBEDDING, HEAD) if name in tensors]
    return frozenset(name for name in ends if torch.equal(tensors[name], teacher.read(name).float()))


def _config(source: Path, shape: ModelSpec) -> dict[str, Any]:
    return smaller_config(source, Work(Recipe(), shape, {}, {}))


def _check_vocabulary(path: Path, spec: ModelSpec, teacher: ModelSpec) -> None:
    if spec.vocab_size != teacher.vocab_size:
        raise DistilError(
            f"{path} has a vocabulary of {spec.vocab_size} tokens, the teacher one of {teacher.vocab_size}: their "
            f"predictions cannot be compared. Use a model of the teacher's family, or set vocab_size to "
            f"{teacher.vocab_size}"
        )
