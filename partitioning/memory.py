"""Does a cut fit the devices' memory, and how much KV cache is left room for?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from partitioning.costs import Slice, kv_token_bytes, reserve_bytes, screen_bytes, weight_bytes
from partitioning.layout import RankLayout, StageLayout
from partitioning.model_spec import ModelSpec
from partitioning.plan import PlanError
from partitioning.settings import PlanSettings
from partitioning.topology import DeviceSpec

# A host's memory has other users, so on CPU the cache stops at this many sequences of the greatest length, or this
# many tokens, unless more is asked for.
_CPU_CACHE_SEQUENCES = 8
_CPU_CACHE_TOKENS = 65536


class MemoryShortError(PlanError):
    """A rank's slice does not fit its device. `shortfall` says which, and by how much."""

    def __init__(self, shortfall: str) -> None:
        super().__init__(shortfall)
        self.shortfall = shortfall

    def __str__(self) -> str:
        return (
            f"{self.shortfall}. Raise tp or pp, lower max_model_len, max_batch_tokens or kv_cache_tokens, "
            "or use a smaller dtype or an int8 kv_cache"
        )


def room_bytes(model: ModelSpec, settings: PlanSettings, part: Slice, device: DeviceSpec) -> int:
    """Bytes a rank has left for its KV cache; negative when not even the weights fit."""
    usable = int(device.memory_bytes * settings.memory_fraction)
    return usable - _reserve(model, settings, part, device) - weight_bytes(model, settings.stored(device.kind), part)


def _reserve(model: ModelSpec, settings: PlanSettings, part: Slice, device: DeviceSpec) -> int:
    stored = settings.stored(device.kind)
    return reserve_bytes(model, settings.dtype, stored, part, device.kind, settings.max_batch_tokens)


def kv_blocks(model: ModelSpec, settings: PlanSettings, stages: Sequence[StageLayout]) -> int:
    """KV blocks of the replica: what was asked for, or the least that any rank's memory holds."""
    size = settings.kv_block_size
    first = _draft_needs(settings, stages)
    if settings.kv_cache_tokens is not None:
        return -(-settings.kv_cache_tokens // size)
    ranks = dict.fromkeys((rank, _NOTHING) for stage in stages for rank in stage.ranks)
    ranks[stages[0].ranks[0], first] = None
    tokens = min(_kv_capacity(model, settings, rank, draft) for rank, draft in ranks)
    if any(rank.device.kind == "cpu" for stage in stages for rank in stage.ranks) or tokens == inf:
        tokens = min(tokens, max(_CPU_CACHE_SEQUENCES * settings.max_model_len, _CPU_CACHE_TOKENS))
    # At least the whole of one sequence, which check_memory has granted, also when that is no multiple of a block.
    return max(int(tokens) // size, -(-settings.max_model_len // size))


def check_memory(model: ModelSpec, settings: PlanSettings, stages: Sequence[StageLayout]) -> None:
    """Raises MemoryShortError when a rank has too little memory, naming the one that lacks most."""
    tokens = settings.needed_tokens
    worst, lack = 0, 0
    layouts = [rank for stage in stages for rank in stage.ranks]
    missing: dict[tuple[RankLayout, _Draft], int] = {}
    drafts = [_draft_needs(settings, stages), *[_NOTHING] * (len(layouts) - 1)]
    for number, key in enumerate(zip(layouts, drafts, strict=True)):
        if key not in missing:
            rank, draft = key
            kv = (kv_token_bytes(model, settings.cached, rank.part) + draft.token) * tokens
            missing[key] = kv + draft.weights - room_bytes(model, settings, rank.part, rank.device)
        if missing[key] > lack:
            worst, lack = number, missing[key]
    if lack == 0:
        return
    rank, draft = layouts[worst], drafts[worst]
    weights = weight_bytes(model, settings.stored(rank.device.kind), rank.part)
    kv = kv_token_bytes(model, settings.cached, rank.part) * tokens
    reserve = _reserve(model, settings, rank.part, rank.device)
    usable = int(rank.device.memory_bytes * settings.memory_fraction)
    drafting = draft.weights + draft.token * tokens
    beside = f", {gigabytes(drafting)} for the model that guesses" if drafting else ""
    raise MemoryShortError(
        f"{model.name} does not fit with tp={len(stages[0].ranks)} pp={len(stages)}: rank {worst} ({rank.device.name}) "
        f"needs {gigabytes(weights + kv + reserve + drafting)} ({gigabytes(weights)} weights, {gigabytes(kv)} for "
        f"{tokens} tokens of KV cache, {gigabytes(reserve)} for the process and activations{beside}) and may use "
        f"{gigabytes(usable)} ({settings.memory_fraction:.0%} of {gigabytes(rank.device.memory_bytes)})"
    )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size < 10e9 else f"{size / 1e9:.1f} GB"


@dataclass(frozen=True)
class _Draft:
    """Bytes of a rank's draft model: its weights, and its KV cache for one token."""

    weights: int = 0
    token: int = 0


_NOTHING = _Draft()


def _draft_needs(settings: PlanSettings, stages: Sequence[StageLayout]) -> _Draft:
    """Of rank 0. Activations of a smaller model are small beside those that the rank has already."""
    draft = settings.draft
    if draft is None or not draft.apart(sum(len(stage.ranks) for stage in stages)):
        return _NOTHING
    kind = stages[0].ranks[0].device.kind
    stored = settings.stored(kind)
    return _Draft(
        weight_bytes(draft.model, stored, draft.whole) + screen_bytes(draft.model, stored, draft.whole, kind),
        kv_token_bytes(draft.model, settings.cached, draft.whole),
    )


def _kv_capacity(model: ModelSpec, settings: PlanSettings, rank: RankLayout, draft: _Draft) -> float:
    """Tokens of KV cache that fit a rank; a rank without KV heads has no limit."""
    token = kv_token_bytes(model, settings.cached, rank.part) + draft.token
    return (room_bytes(model, settings, rank.part, rank.device) - draft.weights) // token if token else inf
