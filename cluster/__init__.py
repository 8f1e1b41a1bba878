"""The control plane of Phalanx: spec, topology, coordinator, gateway, command line."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# `ray job submit --working-dir .` ships this tree without installing it; the public package lives under proto/.
if find_spec("phalanx") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent / "proto"))

# Read when grpc is imported. A connection that ends is news of ours to tell, not of grpc's.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
