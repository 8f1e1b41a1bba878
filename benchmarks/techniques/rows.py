"""The techniques that are compared, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from partitioning.compress.choice import group_size
from partitioning.compress.recipe import NAMED, Calibration, Quantise, Recipe, Sparsify, Structure
from partitioning.model_spec import CacheType, DType, ModelSpec, WeightType
from workers.request import SpeculationType

AS_IT_IS = "model"


@dataclass(frozen=True)
class Row:
    """`checkpoint` is AS_IT_IS, a key of RECIPES, or a folder. A row `within_budget` has the smallest weights and cache
    of the other rows that keep BUDGET; what it says itself is only its engine's options."""

    name: str
    checkpoint: str = AS_IT_IS
    dtype: DType = "bfloat16"
    weights: WeightType = "dense"
    kv_cache: CacheType = "auto"
    tp: int = 1
    prefix_cache: bool = False
    speculation: SpeculationType = "off"
    engine: Literal["phalanx", "transformers"] = "phalanx"
    within_budget: bool = False

    @property
    def way(self) -> str:
        """What decides which numbers are computed, apart from the order of sums; rows of one way share its accuracy."""
        return f"{self.engine} {self.checkpoint} {self.dtype} {self.weights} {self.kv_cache}"

    @property
    def key(self) -> str:
        return f"{self.name}: {self.way}"

    def like(self, other: Row) -> Row:
        """With the weights and the cache of another row."""
        fields = {key: getattr(other, key) for key in ("checkpoint", "dtype", "weights", "kv_cache")}
        return replace(self, **fields, within_budget=False)


@dataclass(frozen=True)
class Budget:
    """How much less a row may be than the baseline: `points` of accuracy in percent, `perplexity` as a part of it."""

    points: float
    perplexity: float


BUDGET = Budget(points=0.1, perplexity=0.01)
BASELINE = "transformers, float32"

ROWS = (
    Row(BASELINE, dtype="float32", engine="transformers"),
    Row("float32", dtype="float32"),
    Row("bf16"),
    Row("int8 weights (Q8_0)", weights="int8"),
    Row("W8A8", checkpoint="w8a8", weights="auto"),
    Row("W8A8, head in 8 bits", checkpoint="w8a8", weights="int8"),
    Row("4 bits, rounded", checkpoint="w4-rtn", weights="auto"),
    Row("4 bits, GPTQ", checkpoint="w4-gptq", weights="auto"),
    Row("4 bits, AWQ", checkpoint="w4-awq", weights="auto"),
    Row("int8 KV cache", kv_cache="int8"),
    Row("prefix cache", prefix_cache=True),
    Row("n-gram speculation", speculation="ngram"),
    Row("2:4 pruning", checkpoint="2-of-4"),
    Row("a tenth of the layers fewer", checkpoint="fewer-layers"),
    Row("tp=2", tp=2),
    Row("all that change no token", dtype="float32", prefix_cache=True, speculation="ngram"),
    Row("all within the budget", prefix_cache=True, speculation="ngram", within_budget=True),
)

# As much text as calibration.py writes.
_TEXT = Calibration(samples=16, tokens=512)


def _quantised(rule: Callable[[ModelSpec], Quantise]) -> Callable[[ModelSpec], Recipe]:
    return lambda spec: Recipe(calibration=_TEXT, quantise=(rule(spec),))


RECIPES: dict[str, Callable[[ModelSpec], Recipe]] = {
    "w8a8": _quantised(lambda _: NAMED["w8a8"].quantise[0]),
    "w4-rtn": _quantised(lambda spec: Quantise(method="rtn", group_size=group_size(spec))),
    "w4-gptq": _quantised(lambda spec: Quantise(method="gptq", group_size=group_size(spec), search=True)),
    "w4-awq": _quantised(
        lambda spec: Quantise(method="awq", group_size=group_size(spec), symmetric=False, search=True)
    ),
    "2-of-4": lambda _: Recipe(calibration=_TEXT, sparsify=(Sparsify(method="sparsegpt", pattern="2:4"),)),
    "fewer-layers": lambda spec: Recipe(
        calibration=_TEXT, structure=Structure(layers=max(1, spec.num_layers - max(1, spec.num_layers // 10)))
    ),
}
