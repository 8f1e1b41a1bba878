"""What actors write, beside the process that has joined their Ray cluster. Ray has no public way to change that."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from ray._private import worker
from ray._private.ray_logging import global_worker_stdstream_dispatcher

log = logging.getLogger(__name__)

_RAYS = "ray_print_logs"


def as_json() -> None:
    """From now on a line of JSON stays as it is, and any other becomes one, as do Ray's own words."""
    _show(_pass_on)
    global_worker_stdstream_dispatcher.add_handler(_RAYS, _pass_on)
    rays = logging.getLogger("ray")
    rays.handlers.clear()
    rays.propagate = True


def mute() -> None:
    """Shows nothing any more: an actor that Ray ends while it starts leaves a traceback, at an orderly end too, and
    a call that is not over a raylet's complaint."""
    _show(lambda data: None)


def _show(show: Callable[[dict[str, Any]], None]) -> None:
    global_worker_stdstream_dispatcher.remove_handler(_RAYS)
    # Ray prints raylets' errors past its dispatcher.
    worker.print_to_stdstream = lambda data, ignore_prefix: show(data)


def _pass_on(data: dict[str, Any]) -> None:
    for line in data["lines"]:
        if line.startswith("{"):
            sys.stderr.write(f"{line}\n")
        elif line.strip():
            log.info("an actor printed", extra={"actor": data.get("actor_name"), "pid": data["pid"], "line": line})
