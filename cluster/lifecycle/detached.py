"""Deployments that outlive the command that starts them: to start, change and end from anywhere in the Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from cluster.lifecycle.coordinator import Opened
from cluster.lifecycle.ray_cluster import (
    DeployError,
    Say,
    ask,
    create_coordinator,
    end_coordinator,
    find_coordinator,
    handed_over,
    join,
)
from cluster.security.registry_secret import given_secrets
from cluster.spec import DeploymentSpec


async def apply(spec: DeploymentSpec, say: Say) -> str:
    """Starts `spec`, whose model is checked, detached; where its deployment runs already, rolls it to `spec`, unless it
    is the one that runs: it may be handed over again and again. Returns the registry's address when all replicas are
    ready.

    Raises:
        PlanError: it does not fit the cluster.
        RollError: it cannot take over from what runs.
        SecurityError: the registry's secret that is given cannot be used.
        DeployError: no Ray cluster, or a replica could not be built.
    """
    with _joined(say):
        coordinator = find_coordinator(spec.name)
        if coordinator is not None:
            if secrets := given_secrets(spec.registry_secret):
                await ask(coordinator.let_in.remote(secrets))
            if await ask(coordinator.serves.remote(handed_over(spec))):
                say(f"{spec.name} runs already, from this spec")
                await ask(coordinator.started.remote())
            else:
                say(f"{spec.name} runs already: replacing its replicas, one after the other")
                await ask(coordinator.roll.remote(handed_over(spec)))
            return str((await ask(coordinator.open.remote())).registry)
        coordinator = create_coordinator(spec, detached=True)
        try:
            opened: Opened = await ask(coordinator.open.remote())
            say(f"planned; the registry is at {opened.registry}; starting the replicas")
            await ask(coordinator.started.remote())
        except BaseException:
            await end_coordinator(coordinator)
            raise
        return opened.registry


async def roll(spec: DeploymentSpec, say: Say) -> None:
    """Replaces the replicas of the running deployment of that name, one after the other. Raises as `apply` does."""
    with _joined(say):
        await ask(_running(spec.name).roll.remote(handed_over(spec)))


async def stop(deployment: str, say: Say) -> None:
    """Ends a deployment: no process of it is left.

    Raises:
        DeployError: no deployment of that name runs.
    """
    with _joined(say):
        await end_coordinator(_running(deployment))


async def secret(deployment: str, say: Say) -> str:
    """What the deployment's registry lets gateways in by.

    Raises:
        DeployError: no deployment of that name runs.
    """
    with _joined(say):
        opened: Opened = await ask(_running(deployment).open.remote())
        return opened.secret


def _running(deployment: str) -> Any:
    coordinator = find_coordinator(deployment)
    if coordinator is None:
        raise DeployError(f"no deployment named {deployment} runs on this Ray cluster: see `ray list actors`")
    return coordinator


@contextmanager
def _joined(say: Say) -> Iterator[None]:
    join(say)
    try:
        yield
    finally:
        ray.shutdown()
