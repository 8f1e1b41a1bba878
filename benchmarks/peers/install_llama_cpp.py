"""Sets up llama.cpp in an environment of its own: python benchmarks/peers/install_llama_cpp.py FOLDER

llama-cpp-python brings llama.cpp's source and builds it for this machine's CPU, which takes 6 to 10 minutes on two
cores and needs a C++ compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

VERSION = "llama-cpp-python==0.3.36"
_CMAKE_ARGS = "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF"


def main(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    build = [str(python), "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python", VERSION]
    subprocess.run(build, check=True, env={**os.environ, "CMAKE_ARGS": _CMAKE_ARGS})
    print(f"llama.cpp is in {folder}: pass --llama {python} to benchmarks/compare.py")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
