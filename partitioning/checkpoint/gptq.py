"""The format of AutoGPTQ and GPTQModel: codes in 32-bit words along the inputs, transposed.

`qweight` [inputs / codes a word, outputs], `qzeros` [groups, outputs / codes a word], `scales` [groups, outputs],
`g_idx` [inputs], the group of each input. Version 1 of the format stores zero points less one.
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
    from partitioning.checkpoint.grouped_codes import GroupedCodes

_INTEGERS = frozenset(("I32",))


class _Config(BaseModel):
    model_config = ConfigDict(strict=True)
    bits: Literal[2, 4, 8]
    group_size: int = Field(ge=-1, le=2**31)
    desc_act: bool = False
    sym: bool = True
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    dynamic: dict[str, Any] | None = None


def read_gptq(fields: dict[str, Any], path: Path) -> Quantisation:
    """Raises CheckpointError for what is malformed or not supported."""
    try:
        config = _Config.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        key = ".".join(map(str, fault["loc"]))
        raise CheckpointError(
            f"{path}: quantization_config.{key}: {fault['msg']}; 2, 4 and 8 bits in the formats gptq and gptq_v2 are "
            "supported"
        ) from error
    if config.dynamic:
        raise CheckpointError(
            f"{path}: quantization_config.dynamic, which gives layers bits of their own, is not supported for gptq; "
            "use compressed-tensors for such a mixture"
        )
    return _Gptq(path, config)


class _Gptq(Quantisation):
    name = "gptq"

    def __init__(self, path: Path, config: _Config) -> None:
        self._path, self._config = path, config
        self._scheme = Scheme(config.bits, config.group_size if config.group_size > 0 else None, config.sym)

    def matrix(self, stem: str, shape: tuple[int, int], stored: Mapping[str, StoredTensor]) -> PackedMatrix | None:
        own = {name for name in stored if name.startswith(f"{stem}.") and not name.endswith(".bias")}
        if not own:
            return None
        matrix = _Matrix(stem, shape, self._scheme, self._config, stored)
        if not fits(matrix.parts, stored):
            raise CheckpointError(
                f"{self._path}: the tensors {', '.join(sorted(own))} do not fit gptq with {self._config.bits} bits and "
                f"group_size {self._config.group_size}; the checkpoint mixes formats or is of another model. "
                "Fetch it again"
            )
        return matrix

    def ignores(self, name: str, files: SafetensorsFiles) -> bool:
        """AutoGPTQ gives every layer a bias, of zeros where the model has none."""
        stored = files.stored[name]
        is_bias = name.endswith(".bias") and stored.type in FLOATS and len(stored.shape) == 1
        return is_bias and not files.read(name).any()


class _Matrix(PackedMatrix):
    def __init__(
        self,
        stem: str,
        shape: tuple[int, int],
        scheme: Scheme,
        config: _Config,
        stored: Mapping[str, StoredTensor],
    ) -> None:
        order = f"{stem}.g_idx" in stored
        # Without activation order g_idx only says what follows from the position.
        super().__init__(stem, shape, scheme, ordered=order and config.desc_act)
        self._less_one = config.checkpoint_format == "gptq"
        (outputs, inputs), each = shape, 32 // config.bits
        groups = scheme.groups(inputs)
        self.parts = {
            f"{stem}.qweight": Part((-(-inputs // each), outputs), _INTEGERS),
            f"{stem}.qzeros": Part((groups, -(-outputs // each)), _INTEGERS),
            f"{stem}.scales": Part((groups, outputs), FLOATS),
        }
        if order:
            self.parts[f"{stem}.g_idx"] = Part((inputs,), _INTEGERS)

    def read(self, files: SafetensorsFiles, rows: Span, cols: Span) -> GroupedCodes:
        from partitioning.checkpoint.grouped_codes import GroupedCodes, unpacked, words_of

        bits, stem, groups = self.scheme.bits, self.stem, Span(0, self.scheme.groups(self.shape[1]))
        words = files.read(f"{stem}.qweight", words_of(bits, cols), rows)
        zeros = unpacked(files.read(f"{stem}.qzeros", groups, words_of(bits, rows)), bits, rows).T
        if self._less_one:
            zeros = (zeros + 1) & (2**bits - 1)
        order = files.read(f"{stem}.g_idx", cols) if self.ordered else None
        scales = files.read(f"{stem}.scales", groups, rows).T.float()
        codes = unpacked(words.T, bits, cols)
        centred = bool((zeros == 2 ** (bits - 1)).all())
        return GroupedCodes(bits, codes, scales, None if centred else zeros.float(), self.groups_of(order, cols))
