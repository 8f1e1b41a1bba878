"""Writes a GGUF file again in the types that are compared: FOLDER/bf16.gguf, q8_0.gguf and q4_1.gguf.

python -m benchmarks.peers.requantise FILE.gguf FOLDER, in the environment that install_llama_cpp.py makes. Files that
are there already are kept. All types come from the same weights; from a quantised FILE that means requantising, which
costs quality and changes nothing about speed.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llama_cpp

TYPES = {
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
}


def main(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    llama_cpp.llama_backend_init()
    for name, kind in TYPES.items():
        target, partial = folder / f"{name}.gguf", folder / f"{name}.partial"
        if target.exists():
            continue
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = kind
        options.allow_requantize = True
        if llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(options)):
            raise RuntimeError(f"llama.cpp cannot write {source} as {name}; its own words are above")
        partial.rename(target)  # so that an interrupted run leaves nothing that looks whole


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
