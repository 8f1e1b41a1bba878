"""What every checkpoint format offers: the model's description, and slices of its tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from partitioning.model_spec import ModelSpec
from partitioning.plan import Span

if TYPE_CHECKING:  # torch takes a second to import, which describing a model need not
    import torch

    from partitioning.quantised import Codes
    from partitioning.topology import DeviceKind


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or not supported. The message names the file, the cause and the remedy."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `type` is the format's own type name, [begin, end) are byte offsets in `file`."""

    file: str
    type: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def mapped(self) -> npt.NDArray[np.uint8]:
        """Its bytes, mapped for as long as somebody holds the array: a file's pages count as the process's memory."""
        return np.memmap(self.file, mode="r", offset=self.begin, shape=(self.end - self.begin,))


class Checkpoint(ABC):
    """An open checkpoint. Opening reads descriptions only; weights are read slice by slice."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @property
    @abstractmethod
    def bytes_read(self) -> int:
        """Bytes of weights that the slices asked for so far occupy in the files."""

    @abstractmethod
    def read(self, name: str, rows: Span | None = None, cols: Span | None = None) -> torch.Tensor:
        """Return [rows, cols] of a tensor (or [rows] of a vector) as a new contiguous tensor on the CPU.

        `name` is Hugging Face's, whatever the format; rows and columns count as in Hugging Face's layout, and None
        means all of them. The type is the file's own float type, or float32 where the file holds quantised blocks.
        Raises CheckpointError for a name that the checkpoint lacks or a span outside the tensor.
        """

    def read_quantised(
        self, name: str, rows: Span | None = None, cols: Span | None = None, kind: DeviceKind = "cpu"
    ) -> Codes | None:
        """The same slice as the file's own 8 or 4-bit codes, or None where it has none of a type that devices of this
        kind have products for, or where `cols` cuts through a group of them. Raises as `read` does."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release the files. Tensors already read stay valid."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def slice_bounds(name: str, shape: tuple[int, ...], rows: Span | None, cols: Span | None) -> tuple[Span, Span | None]:
    """The rows and columns that a read means; columns are None for a vector.

    Raises CheckpointError when they reach outside `shape`, or ask for columns of a vector.
    """
    rows = Span(0, shape[0]) if rows is None else rows
    if len(shape) == 1:
        if cols is not None:
            raise CheckpointError(f"{name} is a vector of {shape[0]} values; it has no columns to slice")
    elif cols is None:
        cols = Span(0, shape[1])
    if rows.stop > shape[0] or (cols is not None and cols.stop > shape[1]):
        raise CheckpointError(f"slice rows {rows}, columns {cols} reaches outside {name}, whose shape is {shape}")
    return rows, cols
