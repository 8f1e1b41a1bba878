"""The `compressed-tensors` format of llm-compressor: https://github.com/vllm-project/compressed-tensors.

What a matrix is stored as follows from its tensors, so the configuration's lists of targets need no matching: of its
schemes the one that fits their shapes is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from partitioning.checkpoint.base import CheckpointError, StoredTensor
from partitioning.checkpoint.packed import FLOATS, PackedMatrix, Quantisation, Scheme, fits
from partitioning.checkpoint.safetensors_files import SafetensorsFiles
from partitioning.checkpoint.tensors import Part
from partitioning.plan import Span

if TYPE_CHECKING:
    import torch

    from partitioning.checkpoint.grouped_codes import GroupedCodes

_INTEGERS = frozenset(("I32",))
_NAN = 0x7F  # of E4M3, its sign aside


class _Weights(BaseModel):
    model_config = ConfigDict(strict=True)
    num_bits: Literal[2, 4, 8]
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: Literal["tensor", "channel", "group"] | None = None
    group_size: int | None = Field(default=None, ge=-1, le=2**31)

    def scheme(self, inputs: _Inputs | None) -> Scheme:
        grouped = self.group_size is not None and self.group_size > 0
        per_tensor = self.strategy == "tensor" or (self.strategy is None and self.group_size is None)
        group = self.group_size if grouped and self.strategy in (None, "group") else None
        rounds_inputs = inputs is not None and inputs.in_eight_bits
        return Scheme(self.num_bits, group, self.symmetric, self.type == "float", per_tensor, rounds_inputs)


class _Inputs(BaseModel):
    """How activations are rounded before a product. Static scales are not used: each token gets its own."""

    model_config = ConfigDict(strict=True)
    num_bits: int
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: str | None = None

    @property
    def in_eight_bits(self) -> bool:
        whole = self.strategy in (None, "tensor", "token")
        return self.num_bits == 8 and self.type == "int" and self.symmetric and whole


class _Group(BaseModel):
    model_config = ConfigDict(strict=True)
    weights: _Weights | None = None
    input_activations: _Inputs | None = None


class _Config(BaseModel):
    """The keys that decide how weights are stored."""

    model_config = ConfigDict(strict=True)
    format: str = "dense"
    quantization_status: str = "compressed"
    config_groups: dict[str, _Group] = {}
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None
    kv_cache_scheme: dict[str, Any] | None = None


def read_compressed_tensors(fields: dict[str, Any], path: Path) -> Quantisation:
    """Raises CheckpointError for what is malformed or not supported."""
    try:
        config = _Config.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        key = ".".join(map(str, fault["loc"]))
        raise CheckpointError(f"{path}: quantization_config.{key}: {fault['msg']}") from error
    sparse = (config.sparsity_config or {}).get("format", "dense")
    for key, value, good in [
        ("quantization_status", config.quantization_status, config.quantization_status == "compressed"),
        ("sparsity_config.format", sparse, sparse == "dense"),
        ("transform_config", "of rotations", not (config.transform_config or {}).get("config_groups")),
        ("kv_cache_scheme", "of stored scales", config.kv_cache_scheme is None),
    ]:
        if not good:
            raise CheckpointError(
                f"{path}: quantization_config.{key} {value} is not supported; save the model compressed and without it "
                "(llm-compressor: save_pretrained(..., save_compressed=True))"
            )
    schemes = [
        group.weights.scheme(group.input_activations)
        for group in config.config_groups.values()
        if group.weights is not None
    ]
    return _CompressedTensors(path, schemes)


class _CompressedTensors(Quantisation):
    name = "compressed-tensors"

    def __init__(self, path: Path, schemes: list[Scheme]) -> None:
        self._path, self._schemes = path, schemes

    def matrix(self, stem: str, shape: tuple[int, int], stored: Mapping[str, StoredTensor]) -> PackedMatrix | None:
        own = {name for name in stored if name.startswith(f"{stem}.")}
        if not own:
            return None
        for scheme in self._schemes:
            kinds = (_Packed,) if not scheme.floats else ()
            for kind in (*kinds, _Plain):
                matrix = kind(stem, shape, scheme, stored)
                if fits(matrix.parts, stored):
                    return matrix
        raise CheckpointError(
            f"{self._path}: the tensors {', '.join(sorted(own))} fit none of quantization_config's schemes; the "
            "checkpoint mixes formats or is of another model. Fetch it again"
        )


class _Matrix(PackedMatrix):
    """What both ways of storing have in common: scales [outputs, groups], and the order of groups in older files."""

    def __init__(self, stem: str, shape: tuple[int, int], scheme: Scheme, stored: Mapping[str, StoredTensor]) -> None:
        order = f"{stem}.weight_g_idx"
        super().__init__(stem, shape, scheme, order in stored)
        self._scales = f"{stem}.weight_scale"
        self._order = order if order in stored else None
        rows, groups = shape[0], scheme.groups(shape[1])
        scales: tuple[int, ...] = (rows, groups)
        if scheme.per_tensor:
            scales = (1,)
        elif scheme.group is None and self._scales in stored and len(stored[self._scales].shape) == 1:
            scales = (rows,)
        self.parts = {self._scales: Part(scales, FLOATS)}
        if self._order is not None:
            self.parts[self._order] = Part((shape[1],), _INTEGERS)

    def _scale(self, files: SafetensorsFiles, rows: Span) -> torch.Tensor:
        """float32 [rows, groups]."""
        shape = self.parts[self._scales].shape
        if self.scheme.per_tensor:
            return files.read(self._scales).float().expand(len(rows), 1)
        scales = files.read(self._scales, rows).float()
        return scales if len(shape) == 2 else scales.unsqueeze(1)

    def _group_of(self, files: SafetensorsFiles, cols: Span) -> torch.Tensor:
        return self.groups_of(None if self._order is None else files.read(self._order, cols), cols)


class _Packed(_Matrix):
    """`pack-quantized`: codes in 32-bit words along the inputs; zero points in words along the outputs."""

    def __init__(self, stem: str, shape: tuple[int, int], scheme: Scheme, stored: Mapping[str, StoredTensor]) -> None:
        super().__init__(stem, shape, scheme, stored)
        each = 32 // scheme.bits
        self.parts |= {
            f"{stem}.weight_packed": Part((shape[0], -(-shape[1] // each)), _INTEGERS),
            f"{stem}.weight_shape": Part((2,), frozenset(("I64", "I32"))),
        }
        if not scheme.symmetric:
            zeros = (-(-shape[0] // each), scheme.groups(shape[1]))
            self.parts[f"{stem}.weight_zero_point"] = Part(zeros, _INTEGERS)

    def read(self, files: SafetensorsFiles, rows: Span, cols: Span) -> GroupedCodes:
        from partitioning.checkpoint.grouped_codes import GroupedCodes, unpacked, words_of

        bits = self.scheme.bits
        words = files.read(f"{self.stem}.weight_packed", rows, words_of(bits, cols))
        zeros = None
        if not self.scheme.symmetric:
            packed = files.read(f"{self.stem}.weight_zero_point", words_of(bits, rows))
            zeros = unpacked(packed.T, bits, rows).T.float()
        codes = unpacked(words, bits, cols)
        return GroupedCodes(bits, codes, self._scale(files, rows), zeros, self._group_of(files, cols))


class _Plain(_Matrix):
    """`int-quantized`, `float-quantized` and `naive-quantized`: one byte a code. Scales of static activations are read
    past, for activations get scales of their own here."""

    def __init__(self, stem: str, shape: tuple[int, int], scheme: Scheme, stored: Mapping[str, StoredTensor]) -> None:
        super().__init__(stem, shape, scheme, stored)
        self.parts[f"{stem}.weight"] = Part(shape, frozenset(("F8_E4M3",) if scheme.floats else ("I8",)))
        if not scheme.symmetric:
            self.parts[f"{stem}.weight_zero_point"] = Part(self.parts[self._scales].shape, frozenset(("I8",)))
        for name in (f"{stem}.input_scale", f"{stem}.input_zero_point"):
            if name in stored:
                self.parts[name] = Part(stored[name].shape, frozenset((stored[name].type,)))

    def read(self, files: SafetensorsFiles, rows: Span, cols: Span) -> GroupedCodes:
        import torch

        from partitioning.checkpoint.grouped_codes import GroupedCodes

        codes = files.read(f"{self.stem}.weight", rows, cols)
        scales, groups = self._scale(files, rows), self._group_of(files, cols)
        if self.scheme.floats:
            if (codes.view(torch.uint8) & _NAN == _NAN).any():
                raise CheckpointError(f"{self.stem}: some weights are not a number; quantise or fetch the model again")
            return GroupedCodes(0, codes, scales, None, groups)
        centred = (codes.view(torch.uint8) ^ 0x80).contiguous()  # signed to centred
        if self.scheme.symmetric:
            # Codes of fewer bits than the byte that holds them are centred in the byte all the same.
            return GroupedCodes(8, centred, scales, None, groups)
        name = f"{self.stem}.weight_zero_point"
        zeros = files.read(name).expand(len(rows)) if self.scheme.per_tensor else files.read(name, rows)
        return GroupedCodes(8, centred, scales, zeros.float().view(scales.shape) + 128, groups)
