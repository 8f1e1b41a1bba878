"""Matrices that a checkpoint holds as codes with scales, spread over several tensors: what every such format offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from partitioning.checkpoint.base import StoredTensor
from partitioning.checkpoint.safetensors_files import SafetensorsFiles
from partitioning.checkpoint.tensors import Part
from partitioning.plan import Span

if TYPE_CHECKING:
    import torch

    from partitioning.checkpoint.grouped_codes import GroupedCodes
    from partitioning.topology import DeviceKind

FLOATS = frozenset(("F32", "F16", "BF16"))
_GROUP = 32  # of `partitioning.quantised`, which needs torch


@dataclass(frozen=True)
class Scheme:
    """How a matrix was quantised: to integers of `bits`, or to 8-bit floats; each `group` of inputs of an output has a
    scale, each output where it is None; `symmetric` ones have no zero points. `per_tensor`: one scale for all.
    `rounds_inputs`: its products round the other side to 8 bits too, with one scale for a token."""

    bits: int
    group: int | None
    symmetric: bool
    floats: bool = False
    per_tensor: bool = False
    rounds_inputs: bool = False

    @property
    def in_channels(self) -> bool:
        """Whether products are of integers from the first input to the last (W8A8)."""
        return self.rounds_inputs and self.bits == 8 and self.group is None and self.symmetric and not self.floats

    def groups(self, inputs: int) -> int:
        return 1 if self.group is None else -(-inputs // self.group)


class PackedMatrix(ABC):
    """A matrix [outputs, inputs] that the tensors `parts` hold together. `stem` is its name without ".weight"."""

    parts: dict[str, Part]

    def __init__(self, stem: str, shape: tuple[int, int], scheme: Scheme, ordered: bool) -> None:
        self.stem, self.shape, self.scheme, self.ordered = stem, shape, scheme, ordered

    @property
    def bits(self) -> int:
        return self.scheme.bits

    @property
    def held_bits(self) -> float:
        """Of a parameter in memory, with its part of the scales and offsets, where the matrix stays what it is."""
        inputs = self.shape[1]
        if self.scheme.in_channels or self.scheme.floats:
            return 8 + 32 / (inputs if self.scheme.groups(inputs) == 1 else _GROUP)
        return self.bits + (16 if self.scheme.symmetric else 32) / _GROUP

    @property
    def kind(self) -> str:
        """For human eyes."""
        scheme = self.scheme
        kind = "8-bit floats" if scheme.floats else f"{scheme.bits} bits"
        scope = (
            "a matrix" if scheme.per_tensor else "each output" if scheme.group is None else f"groups of {scheme.group}"
        )
        return f"{kind} for {scope}"

    def expanded_because(self, kind: DeviceKind) -> str:
        """Why the codes cannot stay what they are in a device's memory; empty where they can."""
        scheme = self.scheme
        if scheme.floats and kind == "cpu":
            return "only GPUs have a kernel for 8-bit floats"
        if scheme.bits not in (4, 8):
            return f"{scheme.bits} bits have no kernel"
        if self.ordered:
            return "the order of activations scatters their groups (g_idx)"
        if scheme.group is not None and scheme.group % _GROUP:
            return f"groups of {scheme.group} are no multiple of {_GROUP}"
        if scheme.bits == 8 and not scheme.symmetric:
            return "8 bits with zero points have no kernel"
        return ""

    def has_blocks(self, kind: DeviceKind) -> bool:
        return not self.expanded_because(kind)

    @abstractmethod
    def read(self, files: SafetensorsFiles, rows: Span, cols: Span) -> GroupedCodes:
        """Some of its rows and columns. Raises CheckpointError where the codes contradict themselves."""

    def groups_of(self, order: torch.Tensor | None, cols: Span) -> torch.Tensor:
        """[columns] The group of each column; `order` is the file's own list of them. Raises CheckpointError."""
        from partitioning.checkpoint.grouped_codes import groups_of

        return groups_of(self.stem, order, cols, self.scheme.group or self.shape[1], self.scheme.groups(self.shape[1]))


class Quantisation(ABC):
    """What a checkpoint's `quantization_config` says."""

    name: str

    @abstractmethod
    def matrix(self, stem: str, shape: tuple[int, int], stored: Mapping[str, StoredTensor]) -> PackedMatrix | None:
        """The matrix called `stem`, or None where nothing of it is stored in this format. Raises CheckpointError for
        tensors that fit no scheme of the configuration, or are of another format."""

    def ignores(self, name: str, files: SafetensorsFiles) -> bool:
        """Whether a tensor that the model has no place for changes nothing."""
        return False


def fits(parts: Mapping[str, Part], stored: Mapping[str, StoredTensor]) -> bool:
    """Whether all of these are stored, in the shapes and types that they should have."""
    return all(
        name in stored and stored[name].shape == part.shape and stored[name].type in part.types
        for name, part in parts.items()
    )
