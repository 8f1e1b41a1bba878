"""The teacher's last hidden states: computed when a window is first seen, and kept in a file from then on.

Its logits would be a vocabulary for every token, a hundred times as much; its head makes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from partitioning.distil.decoder import Decoder
from partitioning.distil.divergence import Target
from partitioning.distil.windows import Windows


class Teacher:
    """`folder` gets the states: two bytes for each of `hidden_size` values a token, four in float32. Each worker keeps
    those that it computes."""

    def __init__(self, decoder: Decoder, windows: Windows, folder: Path, worker: int = 0) -> None:
        self._decoder, self._windows = decoder, windows
        count, window = windows.tokens.shape
        self._dtype = decoder.head.dtype
        # numpy has no bfloat16.
        kind = np.dtype(np.int16 if self._dtype == torch.bfloat16 else np.float32)
        shape = (count, window, decoder.spec.hidden_size)
        self._states = _mapped(folder / f"states-{worker}.bin", kind, shape)
        self._known = _mapped(folder / f"states-{worker}.known", np.dtype(np.uint8), (count,))

    def target(self, windows: Sequence[int]) -> Target:
        """For all positions of these windows, after each other."""
        with torch.no_grad():
            missing = [window for window in windows if not self._known[window]]
            if missing:
                states = self._decoder.hidden(self._windows.tokens[missing]).to("cpu", self._dtype)
                plain = states.view(torch.int16) if self._dtype == torch.bfloat16 else states
                self._states[missing] = plain.numpy()
                # Only now, lest an interrupted training finds half of them.
                self._known[missing] = 1
            kept = torch.from_numpy(self._states[list(windows)]).view(self._dtype)
        return Target(kept.flatten(0, 1).to(self._decoder.head.device), self._decoder.head)


def _mapped(
    file: Path, kind: np.dtype[np.generic], shape: tuple[int, ...]
) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
    size = int(np.prod(shape)) * kind.itemsize
    whole = file.exists() and file.stat().st_size == size
    return np.memmap(file, kind, mode="r+" if whole else "w+", shape=shape)
