"""Readers of model files that touch only the bytes a rank holds."""

from __future__ import annotations

from pathlib import Path

from partitioning.checkpoint.base import Checkpoint, CheckpointError
from partitioning.checkpoint.gguf_file import GgufFile
from partitioning.checkpoint.safetensors_files import INDEX_NAME, SINGLE_NAME
from partitioning.checkpoint.safetensors_folder import SafetensorsFolder

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint"]

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face folder, a GGUF file, or a folder that holds one GGUF file, without reading its weights.

    What the model needs is checked here against what the files hold, so that later reads of its tensors succeed.
    Raises CheckpointError naming the file, the cause and the remedy.
    """
    path = Path(path)
    try:
        return _open(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # sizes that no model has
        raise CheckpointError(f"{path}: {error}") from error


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; name a Hugging Face folder or a GGUF file")
    if path.suffix in _PICKLE_SUFFIXES:
        raise _pickle_refused(path)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} does not describe its model; name its folder, which also holds config.json")
    return GgufFile(path)


def _open_folder(folder: Path) -> Checkpoint:
    if (folder / INDEX_NAME).exists() or (folder / SINGLE_NAME).exists():
        return SafetensorsFolder(folder)
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return GgufFile(ggufs[0])
    if ggufs:
        raise CheckpointError(f"{folder} holds several GGUF files; name one: {', '.join(p.name for p in ggufs)}")
    pickles = sorted(p for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise _pickle_refused(pickles[0])
    raise CheckpointError(f"{folder} holds neither {SINGLE_NAME} nor {INDEX_NAME} nor a GGUF file")


def _pickle_refused(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a pickle, which can run any code when it is opened; convert it to safetensors "
        "(save_pretrained of transformers writes that format)"
    )
