"""Is /dev/shm as large as the ranks of a host need it? Containers often get 64 MB."""

from __future__ import annotations

import os
import shutil

from cluster.doctor.finding import Finding, failed, ok, warning

_CHECK = "shared memory"
_FOLDER = "/dev/shm"
_REMEDY = "in a container raise its size (docker run --shm-size 1g; in Kubernetes an emptyDir of medium Memory)"


def shared_memory(needed: int) -> Finding:
    """`needed` are bytes."""
    if not os.access(_FOLDER, os.W_OK):
        return warning(
            _CHECK, f"{_FOLDER} cannot be written: ranks of a host exchange through files in $TMPDIR", _REMEDY
        )
    free = shutil.disk_usage(_FOLDER).free
    text = f"{free / 1e6:,.0f} MB free in {_FOLDER}, {needed / 1e6:,.0f} MB needed"
    return ok(_CHECK, text) if free >= needed else failed(_CHECK, text, _REMEDY)
