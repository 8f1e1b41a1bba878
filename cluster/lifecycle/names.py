"""What the parts of a deployment are called in the Ray cluster, so that a coordinator that comes back finds them."""

from __future__ import annotations

NAMESPACE = "phalanx"


def coordinator_name(deployment: str) -> str:
    return f"coordinator:{deployment}"


def epoch_name(deployment: str, life: str, replica: int, epoch: int) -> str:
    """Of one life of a replica: its placement group's name. `life` tells deployments apart that had the same name one
    after the other."""
    return f"{deployment}-{life}-{replica}-{epoch}"


def rank_name(epoch: str, rank: int) -> str:
    """`epoch` is its name, as `epoch_name` makes it."""
    return f"{epoch}-rank-{rank}"
