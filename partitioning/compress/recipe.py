"""What a compression should do: a YAML document, or one of the named recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from partitioning.checkpoint.tensors import model_tensors
from partitioning.model_spec import ModelSpec


class CompressionError(ValueError):
    """A compression that cannot be made. The message names the cause and the remedy."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Calibration(_Part):
    """How much of the calibration text is run through the model: `samples` windows of `tokens` tokens."""

    samples: Annotated[int, Field(ge=1)] = 64
    tokens: Annotated[int, Field(ge=8)] = 512


class Quantise(_Part):
    """`group_size` inputs of an output share a scale, all of them where it is "channel". A `type` of float writes FP8,
    E4M3 floats. `activations` of 8 writes a W8A8 checkpoint, whose engine rounds activations to 8 bits of that type for
    each token. `search`: try narrower ranges, and keep the one of least squared error, weighed by the inputs' squares
    where the method looks at them. `smooth`: scales for the inputs, which the norm or the product before takes back, as
    `awq` always has them; with `activations` of 8 those with which rounding both sides loses least (Xiao et al.,
    "SmoothQuant", 2022)."""

    matrices: tuple[str, ...] = ("*",)
    method: Literal["rtn", "gptq", "awq"] = "gptq"
    type: Literal["int", "float"] = "int"
    bits: Literal[4, 8] = 4
    group_size: Annotated[int, Field(ge=1)] | Literal["channel"] = 64
    symmetric: bool = True
    activations: Literal[8, 16] = 16
    search: bool = False
    smooth: bool = False
    act_order: bool = True
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01

    def group(self, inputs: int) -> int:
        """How many of an output's inputs share a scale."""
        return inputs if self.group_size == "channel" else self.group_size

    @property
    def smooths(self) -> bool:
        return self.smooth or self.method == "awq"

    @model_validator(mode="after")
    def _of_outputs(self) -> Self:
        for key, asked in (("type: float", self.type == "float"), ("activations: 8", self.activations == 8)):
            if asked and (self.bits != 8 or self.group_size != "channel" or not self.symmetric):
                raise ValueError(f"{key} needs bits: 8, group_size: channel and symmetric: true")
        return self


class Sparsify(_Part):
    """A `ratio` of each output's weights become zeros: the least of each row (unstructured), or two of every four."""

    matrices: tuple[str, ...] = ("*",)
    method: Literal["magnitude", "wanda", "sparsegpt"] = "wanda"
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    damping: Annotated[float, Field(gt=0, le=1)] = 0.1

    @model_validator(mode="after")
    def _half_of_four(self) -> Self:
        if self.pattern == "2:4" and self.ratio != 0.5:
            raise ValueError("pattern 2:4 is a ratio of 0.5")
        return self


class Structure(_Part):
    """What is left of the model's shape; what changes the output least is removed. `kv_heads` go with their query
    heads. None leaves a size as it is."""

    layers: Annotated[int, Field(ge=1)] | None = None
    kv_heads: Annotated[int, Field(ge=1)] | None = None
    mlp_columns: Annotated[int, Field(ge=1)] | None = None
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01


class Recipe(_Part):
    """Structure first, then zeros, then bits; of several rules for a matrix the first counts."""

    calibration: Calibration = Calibration()
    structure: Structure | None = None
    sparsify: tuple[Sparsify, ...] = ()
    quantise: tuple[Quantise, ...] = ()

    @property
    def needs_text(self) -> bool:
        """Whether activations decide anything."""
        methods: set[str] = {rule.method for rule in self.sparsify}
        methods |= {rule.method for rule in self.quantise}
        smooths = any(rule.smooths for rule in self.quantise)
        return self.structure is not None or smooths or bool(methods - {"rtn", "magnitude"})


NAMED = {
    "w4a16-rtn": Recipe(quantise=(Quantise(method="rtn"),)),
    "w4a16-gptq": Recipe(quantise=(Quantise(method="gptq", search=True),)),
    "w4a16-awq": Recipe(quantise=(Quantise(method="awq", symmetric=False, search=True),)),
    "w8a16-rtn": Recipe(quantise=(Quantise(method="rtn", bits=8),)),
    "w8a8": Recipe(quantise=(Quantise(method="gptq", bits=8, group_size="channel", activations=8, smooth=True),)),
    "fp8": Recipe(quantise=(Quantise(method="rtn", type="float", bits=8, group_size="channel", activations=8),)),
    "2:4-sparsegpt": Recipe(sparsify=(Sparsify(method="sparsegpt", pattern="2:4"),)),
    "half-wanda": Recipe(sparsify=(Sparsify(method="wanda"),)),
}


def read_recipe(name_or_file: str) -> Recipe:
    """Raises CompressionError."""
    if name_or_file in NAMED:
        return NAMED[name_or_file]
    file = Path(name_or_file)
    try:
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompressionError(
            f"{name_or_file} is neither a named recipe ({', '.join(NAMED)}) nor a file that can be read "
            f"({error.strerror})"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise CompressionError(f"{file} is not YAML: {error}") from error
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'recipe'}: {fault['msg']}" for fault in error.errors()]
        raise CompressionError(f"{file}: {'; '.join(faults[:3])}") from error


Rule = TypeVar("Rule", Sparsify, Quantise)


@dataclass(frozen=True)
class Work:
    """A recipe against a model: `shape` is the smaller model, `sparsify` and `quantise` hold the rule of each matrix
    that has one, by its name in the smaller model."""

    recipe: Recipe
    shape: ModelSpec
    sparsify: dict[str, Sparsify]
    quantise: dict[str, Quantise]


def applied(recipe: Recipe, spec: ModelSpec, shape: ModelSpec) -> Work:
    """Raises CompressionError for a recipe that does nothing, names no matrix, or does not fit the model's sizes."""
    if not (recipe.structure or recipe.sparsify or recipe.quantise):
        raise CompressionError("the recipe does nothing: give it structure, sparsify or quantise")
    sizes = {
        name.removesuffix(".weight"): size
        for name, size in model_tensors(shape).items()
        if len(size) == 2 and name.startswith("model.layers.")
    }
    work = Work(recipe, shape, _matched(recipe.sparsify, sizes), _matched(recipe.quantise, sizes))
    for stem, rule in work.quantise.items():
        inputs = sizes[stem][1]
        if inputs % rule.group(inputs):
            fitting = [size for size in (128, 64, 32) if inputs % size == 0]
            raise CompressionError(
                f"group_size {rule.group_size} does not divide the {inputs} inputs of {stem}; use "
                f"{' or '.join(map(str, [*fitting, 'channel']))}"
            )
    for stem, sparse in work.sparsify.items():
        if sparse.pattern == "2:4" and sizes[stem][1] % 4:
            raise CompressionError(f"pattern 2:4 does not divide the {sizes[stem][1]} inputs of {stem}")
    return work


def _matched(rules: Sequence[Rule], stems: Mapping[str, tuple[int, ...]]) -> dict[str, Rule]:
    """The first rule that names each of the matrices."""
    found: dict[str, Rule] = {}
    for rule in rules:
        for pattern in rule.matrices:
            names = [stem for stem in stems if fnmatchcase(stem, pattern)]
            if not names:
                raise CompressionError(
                    f"the recipe's {pattern} names no matrix of the model's layers; they are called "
                    f"{next(iter(stems))} and so on, and * stands for any text"
                )
            for stem in names:
                found.setdefault(stem, rule)
    return found
