"""Is the model there, whole and readable, and the same on every node?"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from cluster.doctor.finding import Finding, failed, ok, warning
from cluster.models import ModelError, resolve_model
from cluster.text import TokenizerError, TokenizerMissing, load_tokenizer
from partitioning.checkpoint import CheckpointError, open_checkpoint

_CHECK = "model"
_HEAD = 1 << 20
_WEIGHTS = (".safetensors", ".gguf")
_DESCRIPTION = (".json", ".jinja")


def model(name: str) -> Finding:
    """Opens it as a rank does, and reads the last byte of every file of weights."""
    try:
        path = resolve_model(name)
        open_checkpoint(path).close()
        files = _files(path, _WEIGHTS)
        for file in files:
            with file.open("rb") as stream:
                stream.seek(-1, 2)
                stream.read(1)
    except (ModelError, CheckpointError) as error:
        return failed(
            _CHECK, str(error), "put the whole checkpoint at the same path on every node, or on shared storage"
        )
    except OSError as error:
        text = f"{error.filename} cannot be read ({error.strerror})"
        return failed(_CHECK, text, "let the user that runs Ray read it, and look at the disk or mount")
    size = sum(file.stat().st_size for file in files)
    return ok(_CHECK, f"{path}: {len(files)} file(s) of weights, {size / 1e9:.2f} GB")


def tokenizer(name: str) -> Finding:
    """As a gateway loads it."""
    path = resolve_model(name)
    try:
        load_tokenizer(path)
    except TokenizerMissing:
        remedy = "add the model's tokenizer.json, or send token ids alone"
        return warning("tokenizer", f"{path} has none: gateways can take no text", remedy)
    except TokenizerError as error:
        return failed("tokenizer", str(error), "fetch the checkpoint again")
    return ok("tokenizer", f"{path} has one")


def fingerprint(name: str) -> str | None:
    """A digest of what describes the model, and of the weights' names, sizes and first megabyte; None without it."""
    digest = hashlib.sha256()
    try:
        path = resolve_model(name)
        for file in _files(path, _DESCRIPTION):
            digest.update(file.name.encode() + file.read_bytes())
        for file in _files(path, _WEIGHTS):
            with file.open("rb") as stream:
                digest.update(f"{file.name} {file.stat().st_size}".encode() + stream.read(_HEAD))
    except (ModelError, OSError):
        return None
    return digest.hexdigest()[:12]


def differences(fingerprints: Mapping[str, str | None]) -> list[Finding]:
    """Whether the nodes that have it have the same."""
    by_print: dict[str, list[str]] = defaultdict(list)
    for node, found in fingerprints.items():
        if found is not None:
            by_print[found].append(node)
    if len(by_print) > 1:
        text = "nodes have different models: " + "; ".join(f"{p} on {', '.join(on)}" for p, on in by_print.items())
        return [failed(_CHECK, text, "copy the same checkpoint to every node")]
    return [ok(_CHECK, f"the same on {len(on)} nodes ({found})") for found, on in by_print.items()]


def _files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in suffixes else []
    return sorted(file for file in path.iterdir() if file.suffix in suffixes)
