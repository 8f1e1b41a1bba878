"""Hugging Face folders: config.json beside one or several safetensors files, quantised or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from partitioning.checkpoint.base import Checkpoint, CheckpointError, slice_bounds
from partitioning.checkpoint.hf_config import read_hf_config
from partitioning.checkpoint.packed import PackedMatrix, Quantisation
from partitioning.checkpoint.quantisation import read_quantisation
from partitioning.checkpoint.safetensors_files import SafetensorsFiles, weight_files
from partitioning.checkpoint.tensors import Part, check_tensors, model_tensors
from partitioning.model_spec import DType, ModelSpec
from partitioning.plan import Span

if TYPE_CHECKING:
    import torch

    from partitioning.quantised import Codes
    from partitioning.topology import DeviceKind

_FLOATS: dict[str, DType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class SafetensorsFolder(Checkpoint):
    """The weights of a Hugging Face folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Read the descriptions and check them against the files. Raises CheckpointError."""
        self._files = files = SafetensorsFiles(weight_files(folder))
        embedding = files.stored.get("model.embed_tokens.weight")
        spec = read_hf_config(
            folder,
            has_own_head=any(name.startswith("lm_head.") for name in files.stored),
            stored_dtype=_FLOATS.get(embedding.type, "float32") if embedding else "float32",
        )
        quantisation = read_quantisation(folder / "config.json")
        self._packed = {} if quantisation is None else _packed_matrices(folder, spec, quantisation, files)
        plain = {
            name: Part(shape, frozenset(_FLOATS))
            for name, shape in model_tensors(spec).items()
            if name not in self._packed
        }
        parts = [matrix.parts for matrix in self._packed.values()]
        expected = {name: part for group in (plain, *parts) for name, part in group.items()}
        stored = files.stored
        if quantisation is not None:
            matrices = tuple(self._packed.values())
            spec = replace(
                spec,
                packed_bits=_packed_bits(matrices, "cpu"),
                gpu_packed_bits=_packed_bits(matrices, "cuda"),
                notes=_notes(quantisation, matrices),
            )
            stored = {n: tensor for n, tensor in stored.items() if n in expected or not quantisation.ignores(n, files)}
        check_tensors(str(folder), spec, expected, stored, files.sizes)
        super().__init__(spec)

    @property
    def bytes_read(self) -> int:
        return self._files.bytes_read

    def read(self, name: str, rows: Span | None = None, cols: Span | None = None) -> torch.Tensor:
        if (matrix := self._packed.get(name)) is not None:
            return matrix.read(self._files, *_both(matrix, rows, cols)).dequantise()
        if name not in self._files.stored or name not in model_tensors(self.spec):
            raise CheckpointError(f"{self.spec.name} has no tensor {name}")
        return self._files.read(name, rows, cols)

    def read_quantised(
        self, name: str, rows: Span | None = None, cols: Span | None = None, kind: DeviceKind = "cpu"
    ) -> Codes | None:
        matrix = self._packed.get(name)
        if matrix is None or not matrix.has_blocks(kind):
            return None
        from partitioning.quantised import GROUP  # needs torch

        rows, cols = _both(matrix, rows, cols)
        scheme, inputs = matrix.scheme, matrix.shape[1]
        if scheme.in_channels:
            return matrix.read(self._files, rows, cols).channels()
        cuts = cols.start % GROUP or (cols.stop % GROUP and cols.stop != inputs)
        if cuts and not (scheme.floats and scheme.groups(inputs) == 1):
            return None
        codes = matrix.read(self._files, rows, cols)
        return codes.floats() if scheme.floats else codes.blocks()

    def close(self) -> None:
        pass  # nothing stays open between reads


def _packed_matrices(
    folder: Path, spec: ModelSpec, quantisation: Quantisation, files: SafetensorsFiles
) -> dict[str, PackedMatrix]:
    """The matrices that the files hold as codes, by the name that they have where they are not."""
    found = {}
    for name, shape in model_tensors(spec).items():
        if len(shape) == 2 and getattr(files.stored.get(name), "type", None) not in _FLOATS:
            matrix = quantisation.matrix(name.removesuffix(".weight"), (shape[0], shape[1]), files.stored)
            if matrix is not None:
                found[name] = matrix
    if not found:
        raise CheckpointError(
            f"{folder / 'config.json'} speaks of {quantisation.name}, but no matrix of the model is stored so; the "
            "weights are of another format. Fetch the checkpoint again, or remove quantization_config if they are plain"
        )
    return found


def _packed_bits(matrices: Sequence[PackedMatrix], kind: DeviceKind) -> float:
    if not all(matrix.has_blocks(kind) for matrix in matrices):
        return 0
    sizes = [prod(matrix.shape) for matrix in matrices]
    return sum(matrix.held_bits * size for matrix, size in zip(matrices, sizes, strict=True)) / sum(sizes)


def _notes(quantisation: Quantisation, matrices: Sequence[PackedMatrix]) -> tuple[str, ...]:
    notes = [f"weights are {quantisation.name}, {', '.join(sorted({matrix.kind for matrix in matrices}))}"]
    everywhere = [matrix for matrix in matrices if not matrix.has_blocks("cuda")]
    on_cpus = [matrix for matrix in matrices if matrix.has_blocks("cuda") and not matrix.has_blocks("cpu")]
    cases: list[tuple[list[PackedMatrix], DeviceKind, str]] = [(everywhere, "cuda", ""), (on_cpus, "cpu", " on CPUs")]
    for expanded, kind, where in cases:
        if expanded:
            notes.append(
                f"{len(expanded)} of {len(matrices)} quantised matrices are kept as floats{where} "
                f"({expanded[0].expanded_because(kind)}): use --weights int4 or int8 to quantise them anew, in groups "
                "of 32"
            )
    return tuple(notes)


def _both(matrix: PackedMatrix, rows: Span | None, cols: Span | None) -> tuple[Span, Span]:
    rows, cols = slice_bounds(matrix.stem, matrix.shape, rows, cols)
    assert cols is not None
    return rows, cols
