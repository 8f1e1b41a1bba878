"""The format of AutoAWQ, version "gemm": eight 4-bit codes a 32-bit word along the outputs, in an order of their own.

`qweight` [inputs, outputs / 8], `qzeros` [groups, outputs / 8], `scales` [groups, outputs].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from partitioning.checkpoint.base import CheckpointError, StoredTensor
from partitioning.checkpoint.packed import FLOATS, PackedMatrix, Quantisation, Scheme, fits
from partitioning.checkpoint.safetensors_files import SafetensorsFiles
from partitioning.checkpoint.tensors import Part
from partitioning.plan import Span

if TYPE_CHECKING:
    import torch

    from partitioning.checkpoint.grouped_codes import GroupedCodes

_INTEGERS = frozenset(("I32",))
_EACH = 8
# Place of output i of eight in its word, counted in fours of bits.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


class _Config(BaseModel):
    model_config = ConfigDict(strict=True)
    bits: Literal[4] = 4
    group_size: int = Field(ge=-1, le=2**31)
    zero_point: bool = True
    version: Annotated[Literal["gemm"], BeforeValidator(lambda value: str(value).lower())] = "gemm"


def read_awq(fields: dict[str, Any], path: Path) -> Quantisation:
    """Raises CheckpointError for what is malformed or not supported."""
    try:
        config = _Config.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        key = ".".join(map(str, fault["loc"]))
        raise CheckpointError(
            f'{path}: quantization_config.{key}: {fault["msg"]}; 4 bits in version "gemm" are supported'
        ) from error
    return _Awq(path, config)


class _Awq(Quantisation):
    name = "awq"

    def __init__(self, path: Path, config: _Config) -> None:
        self._path = path
        self._scheme = Scheme(4, config.group_size if config.group_size > 0 else None, symmetric=False)

    def matrix(self, stem: str, shape: tuple[int, int], stored: Mapping[str, StoredTensor]) -> PackedMatrix | None:
        own = {name for name in stored if name.startswith(f"{stem}.") and not name.endswith(".bias")}
        if not own:
            return None
        matrix = _Matrix(stem, shape, self._scheme, ordered=False)
        if shape[0] % _EACH or not fits(matrix.parts, stored):
            raise CheckpointError(
                f"{self._path}: the tensors {', '.join(sorted(own))} do not fit awq with group_size "
                f"{self._scheme.group}; the checkpoint mixes formats or is of another model. Fetch it again"
            )
        return matrix


class _Matrix(PackedMatrix):
    def __init__(self, stem: str, shape: tuple[int, int], scheme: Scheme, ordered: bool) -> None:
        super().__init__(stem, shape, scheme, ordered)
        groups = scheme.groups(shape[1])
        self.parts = {
            f"{stem}.qweight": Part((shape[1], shape[0] // _EACH), _INTEGERS),
            f"{stem}.qzeros": Part((groups, shape[0] // _EACH), _INTEGERS),
            f"{stem}.scales": Part((groups, shape[0]), FLOATS),
        }

    def read(self, files: SafetensorsFiles, rows: Span, cols: Span) -> GroupedCodes:
        from partitioning.checkpoint.grouped_codes import GroupedCodes, words_of

        groups, words = Span(0, self.scheme.groups(self.shape[1])), words_of(4, rows)
        codes = _outputs(files.read(f"{self.stem}.qweight", cols, words), rows)
        zeros = _outputs(files.read(f"{self.stem}.qzeros", groups, words), rows)
        scales = files.read(f"{self.stem}.scales", groups, rows).T.float()
        return GroupedCodes(4, codes, scales, zeros.float(), self.groups_of(None, cols))


def _outputs(words: torch.Tensor, rows: Span) -> torch.Tensor:
    """uint8 [rows, inputs] from words [inputs, words] of which the first has the first of `rows`."""
    import torch

    codes = ((words.unsqueeze(2) >> (4 * torch.tensor(_PLACES, dtype=torch.int32))) & 15).flatten(1)
    first = rows.start % _EACH
    return codes[:, first : first + len(rows)].T.to(torch.uint8).contiguous()
