"""Does Ray ask who comes? Whoever reaches a Ray cluster without a token can run code on all of its nodes."""

from __future__ import annotations

import os
from pathlib import Path

from cluster.doctor.finding import Finding, failed, ok, warning

_CHECK = "Ray token"
_REMEDY = "write the cluster's token to a file, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to it"


def ray_token() -> Finding:
    """As Ray looks for it in this process: in RAY_AUTH_TOKEN, in RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token."""
    mode, path = os.environ.get("RAY_AUTH_MODE", "").lower(), _path()
    if mode not in ("", "token"):
        text = f"RAY_AUTH_MODE={mode}: whoever reaches Ray's ports can run code on every node"
        return warning(_CHECK, text, "start the cluster's nodes with RAY_AUTH_MODE=token, or close its network")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return ok(_CHECK, "RAY_AUTH_TOKEN has one")
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        if not mode:
            text = "there is none, and RAY_AUTH_MODE is not set: a cluster that wants one refuses this user"
            return warning(_CHECK, text, _REMEDY)
        return failed(_CHECK, f"RAY_AUTH_MODE=token, and {path} cannot be read ({error.strerror})", _REMEDY)
    return ok(_CHECK, f"{path} has one") if token else failed(_CHECK, f"{path} is empty", _REMEDY)


def _path() -> Path:
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray/auth_token"
