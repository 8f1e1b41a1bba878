"""Generates the Python stubs beside the .proto files: python proto/generate.py [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def generate(out: Path) -> None:
    """Writes *_pb2.py, *_pb2.pyi and *_pb2_grpc.py for every .proto under phalanx/v1 into `out`."""
    files = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("phalanx/v1/*.proto"))]
    flags = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main(["protoc", f"--proto_path={ROOT}", *flags, *files]):
        raise SystemExit("protoc failed; its messages are above")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
