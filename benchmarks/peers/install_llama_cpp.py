"""Sets up llama.cpp in an environment of its own: python benchmarks/peers/install_llama_cpp.py FOLDER [--no-amx]

llama-cpp-python brings llama.cpp's source and builds it for this machine's CPU, which takes 6 to 10 minutes on two
cores and needs a C++ compiler. On some CPUs with AMX its code for that dies of an invalid instruction as soon as it
reads quantised weights; --no-amx leaves it out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

VERSION = "llama-cpp-python==0.3.36"
_CMAKE_ARGS = "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF"
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def main(folder: Path, amx: bool) -> None:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    # Without pip's cache: it would take a wheel that was built with other flags.
    options = ["--quiet", "--no-cache-dir", "--no-binary", "llama-cpp-python"]
    build = [str(python), "-m", "pip", "install", *options, VERSION]
    flags = {} if amx else {"CFLAGS": _NO_AMX, "CXXFLAGS": _NO_AMX}
    subprocess.run(build, check=True, env={**os.environ, **flags, "CMAKE_ARGS": _CMAKE_ARGS})
    print(f"llama.cpp is in {folder}: pass --llama {python} to benchmarks/compare.py")


if __name__ == "__main__":
    folder, *options = sys.argv[1:] or [""]
    if not folder or options not in ([], ["--no-amx"]):
        sys.exit(__doc__)
    main(Path(folder), amx=not options)
