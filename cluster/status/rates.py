"""What changed from one look at a deployment to the next, for a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.status.document import Load, Replica, Status


@dataclass(frozen=True)
class Rates:
    """Tokens a second, and which share of the prompts' tokens the prefix cache had; None where no prompt came."""

    prompt: float
    generated: float
    prefix_hits: float | None


def rates(before: Status, now: Status) -> dict[int, Rates]:
    """Of every replica that lived the same epoch at both looks."""
    seconds = max(now.unix_s - before.unix_s, 1e-3)
    known = {(replica.id, replica.epoch): replica for replica in before.replicas}
    return {
        replica.id: _rates(earlier.load, replica.load, seconds)
        for replica in now.replicas
        if (earlier := known.get((replica.id, replica.epoch))) is not None
        and earlier.load is not None
        and replica.load is not None
    }


def _rates(before: Load, now: Load, seconds: float) -> Rates:
    prompt = now.prompt_tokens - before.prompt_tokens
    cached = now.cached_prompt_tokens - before.cached_prompt_tokens
    generated = now.generated_tokens - before.generated_tokens
    return Rates(prompt / seconds, generated / seconds, cached / prompt if prompt else None)


def total(replicas: list[Replica], of: Callable[[Load], int]) -> int:
    """The sum of a figure over those that tell it."""
    return sum(of(replica.load) for replica in replicas if replica.load is not None)
