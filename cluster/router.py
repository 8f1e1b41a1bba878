"""Which replica gets a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Burden:
    """How busy a replica is, as one gateway sees it.

    `sequences` and `tokens` (prompts and what may yet be generated) are what this gateway has there, `others` the
    sequences of other gateways as of the replica's last step.
    """

    sequences: int = 0
    tokens: int = 0
    others: int = 0


def least_loaded(burdens: Sequence[Burden]) -> int:
    """The place of the replica that should get the next sequence: the one with the fewest sequences, of equals the
    one with the fewest tokens to compute, of equals the first. A step takes longer with every sequence in it, and what
    this gateway sent a moment ago counts already, so a burst of requests spreads evenly.

    Raises:
        ValueError: there is none.
    """
    return min(range(len(burdens)), key=lambda i: (burdens[i].sequences + burdens[i].others, burdens[i].tokens))
