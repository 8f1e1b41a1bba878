"""The cut of one replica before it is numbered and priced: stages of ranks, each with its slice and its device."""

from __future__ import annotations

from dataclasses import dataclass

from partitioning.costs import Slice
from partitioning.plan import Span
from partitioning.topology import DeviceSpec, Link


@dataclass(frozen=True)
class RankLayout:
    heads: Span
    kv_heads: Span
    mlp: Span
    vocab: Span
    part: Slice
    device: DeviceSpec


@dataclass(frozen=True)
class StageLayout:
    """`link` is the slowest between ranks of the stage, `entry` the one from the stage before."""

    layers: Span
    ranks: tuple[RankLayout, ...]
    link: Link
    entry: Link
