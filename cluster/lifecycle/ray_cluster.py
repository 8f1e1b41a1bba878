"""This process's way into a Ray cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from cluster.lifecycle import actor_lines
from cluster.lifecycle.coordinator import Coordinator
from cluster.lifecycle.names import NAMESPACE, coordinator_name
from cluster.security.registry_secret import given_secrets
from cluster.spec import DeploymentSpec
from partitioning.topology import usable_cores
from workers.observation.log import writes_json

_CLOSE_S = 20.0
_OBJECT_STORE_BYTES = 100 << 20  # of a local cluster: nothing large goes through Ray

Say = Callable[[str], None]


class DeployError(RuntimeError):
    """A deployment that cannot start or be changed. The message names the cause and the remedy."""


def join(say: Say) -> None:
    """Joins the Ray cluster at RAY_ADDRESS.

    Raises:
        DeployError: there is none, or it refuses.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise DeployError("RAY_ADDRESS is not set: set it to the Ray cluster's address, such as 10.0.0.1:6379")
    say(f"joining the Ray cluster at {address}")
    try:
        _init(address=address)
    except Exception as error:  # Ray raises many kinds
        token = "If the cluster wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN)."
        raise DeployError(f"cannot join the Ray cluster at {address}: {error}. {token}") from error


def join_or_start(processes: int, say: Say) -> None:
    """Joins the Ray cluster at RAY_ADDRESS, or starts one on this machine for so many processes, which ends with this
    one.

    Raises:
        DeployError: it cannot be joined or started.
    """
    if os.environ.get("RAY_ADDRESS"):
        join(say)
        return
    say("starting a Ray cluster on this machine (set RAY_ADDRESS to join one)")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _init(
            address="local",
            # More processes than cores are slow, and fine for a trial.
            num_cpus=max(usable_cores(), processes),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
        )
    except Exception as error:
        raise DeployError(f"cannot start a Ray cluster on this machine: {error}.") from error


def _init(**options: Any) -> None:
    ray.init(namespace=NAMESPACE, logging_level=logging.ERROR, **options)
    if writes_json():
        actor_lines.as_json()


def handed_over(spec: DeploymentSpec) -> str:
    """The spec as JSON, as a coordinator gets it: without the file of the registry's secret, which goes by itself."""
    return spec.model_copy(update={"registry_secret": None}).model_dump_json()


def create_coordinator(spec: DeploymentSpec, detached: bool) -> Any:
    """A coordinator for a new deployment, which ends with this job unless it is `detached`. Its registry's secret is
    the one that is given to this process, if any is.

    Raises:
        SecurityError: that cannot be used.
        DeployError: a deployment of that name is running.
    """
    try:
        return (
            ray.remote(Coordinator)
            .options(
                name=coordinator_name(spec.name),
                lifetime="detached" if detached else None,
                num_cpus=0,
                max_concurrency=100,
                max_restarts=-1,
                max_task_retries=-1,
            )
            .remote(handed_over(spec), secrets.token_hex(4), detached, given_secrets(spec.registry_secret))
        )
    except ValueError as error:
        raise DeployError(
            f"a deployment named {spec.name} is running on this cluster already: stop it (phalanx stop {spec.name}), "
            "or choose another --name"
        ) from error


def find_coordinator(deployment: str) -> Any:
    """The coordinator of a running deployment, or None."""
    try:
        return ray.get_actor(coordinator_name(deployment))
    except ValueError:
        return None


async def ask(call: Any) -> Any:
    """The answer of a coordinator, or the error it had, as if it had been raised here."""
    try:
        return await call
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise DeployError(f"the coordinator died: {error}") from error


async def end_coordinator(coordinator: Any) -> None:
    """Lets it end everything that it started, and itself."""
    actor_lines.mute()
    with suppress(RayActorError, TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await coordinator.close.remote()
    ray.kill(coordinator)
