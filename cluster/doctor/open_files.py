"""How many files and connections may a process have open?"""

from __future__ import annotations

import resource

from cluster.doctor.finding import Finding, failed, ok, warning

_CHECK = "open files"
_OWN = 512  # what a process of ours, or of Ray, has open beside its callers' connections
_LEAST = 1024


def open_files(connections: int = 0) -> Finding:
    """For a process that may have so many `connections` from outside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_LEAST, _OWN + connections)
    text = f"a process may open {_shown(soft)} files (up to {_shown(hard)} if it asks), {wanted:,} are wanted"
    remedy = "ulimit -n 65536 before the start (LimitNOFILE=65536 in a systemd unit)"
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ok(_CHECK, text)
    if soft < _LEAST:
        return failed(_CHECK, text, remedy)
    return warning(_CHECK, f"{text}: one for each client that is connected at once", remedy)


def _shown(limit: int) -> str:
    return "any number of" if limit == resource.RLIM_INFINITY else f"{limit:,}"
