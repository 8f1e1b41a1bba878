"""A plan: which rank of which stage holds which slice of which tensor. Plain data, made before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from partitioning.model_spec import CacheType, DType, ModelSpec, WeightType

if TYPE_CHECKING:
    from partitioning.topology import DeviceKind


class PlanError(ValueError):
    """A plan that cannot be made, or one that does not hold together. The message names the cause and the remedy."""


@dataclass(frozen=True)
class Span:
    """A half-open range [start, stop) of layers, heads, columns or rows."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"a span needs 0 <= start <= stop, got [{self.start}, {self.stop})")

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class RankPlan:
    """The slice of the model that one rank holds.

    Attention: query heads `heads` and exactly the KV heads `kv_heads` that they read. The first and the last of these
    may be on a neighbour too, which reads them with other query heads; a rank may also have no head at all.
    `mlp` are columns of gate/up (rows of down); `vocab` are rows of the embedding (first stage) and of the LM head
    (last stage), empty on ranks of a middle stage.

    `decode_seconds` and `prefill_seconds` are this rank's predicted share of one decode step (batch 1) and of a
    prefill of `Prediction.prefill_tokens` tokens, communication included.
    """

    rank: int
    stage: int
    tp_rank: int
    node: str
    device: str
    threads: int
    layers: Span
    heads: Span
    kv_heads: Span
    mlp: Span
    vocab: Span
    weight_bytes: int
    decode_seconds: float = 0.0
    prefill_seconds: float = 0.0

    @property
    def kind(self) -> DeviceKind:
        """Of its device."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    def readers(self, group: int) -> list[int]:
        """How many of this rank's query heads read each of its KV heads; `group` do in the whole model."""
        heads = range(self.heads.start, self.heads.stop)
        return [sum(head // group == kv for head in heads) for kv in range(self.kv_heads.start, self.kv_heads.stop)]


@dataclass(frozen=True)
class Prediction:
    """What the cost model expects of one replica: seconds, and the reason for the choice."""

    decode_seconds: float
    prefill_seconds: float
    prefill_tokens: int
    explanation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How one replica is cut. Ranks are ordered by (stage, tp_rank); rank numbers count from 0 in that order.

    `kv_blocks` (the same on every rank) of `kv_block_size` tokens are the replica's KV cache. `replica_devices[i]`
    names the (node, device) of every rank of replica i.
    """

    model: ModelSpec
    model_path: str
    dtype: DType
    weights: WeightType
    kv_cache: CacheType
    tp: int
    pp: int
    ranks: tuple[RankPlan, ...]
    kv_block_size: int
    kv_blocks: int
    prediction: Prediction
    replica_devices: tuple[tuple[tuple[str, str], ...], ...]

    @property
    def replicas(self) -> int:
        return len(self.replica_devices)

    def stage(self, stage: int) -> tuple[RankPlan, ...]:
        """The ranks of one stage, by tp_rank."""
        return tuple(r for r in self.ranks if r.stage == stage)
