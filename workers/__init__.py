"""The data plane of Phalanx: what runs in every rank. Needs no Ray."""

import sys
from importlib.util import find_spec
from pathlib import Path

# `ray job submit --working-dir .` ships this tree without installing it; the public package lives under proto/.
if find_spec("phalanx") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent / "proto"))
