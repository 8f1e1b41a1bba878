"""The text as windows: which are learned from, in which order, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from partitioning.distil.settings import DistilError, Settings

_MOST_HELD_OUT = 16


class Windows:
    """`tokens` int64 [windows, window] are all, of which the last `held_out` are only measured on."""

    def __init__(self, text: Sequence[int], settings: Settings) -> None:
        """Raises DistilError where the text does not fill one step, with a window to measure on."""
        window = settings.window
        count = len(text) // window
        if count < settings.windows + 1:
            raise DistilError(
                f"the text has {len(text)} tokens; a step of {settings.windows} windows of {window} tokens and one to "
                f"measure on need {(settings.windows + 1) * window}: give more --text, or lower --batch or --window"
            )
        self.tokens = torch.tensor(text[: count * window]).view(count, window)
        held_out = min(max(count // 20, 1), _MOST_HELD_OUT, count - settings.windows)
        self.learned, self.held_out = range(count - held_out), range(count - held_out, count)
        self._settings = settings

    def step(self, number: int) -> list[list[int]]:
        """The windows of a step, for each of its batches. They follow from its number, so that a training which goes on
        sees those that it has not seen."""
        wanted, count = self._settings.windows, len(self.learned)
        places = range(number * wanted, (number + 1) * wanted)
        orders = {turn: self._order(turn) for turn in {place // count for place in places}}
        windows = [orders[place // count][place % count] for place in places]
        batch = self._settings.batch
        return [windows[start : start + batch] for start in range(0, wanted, batch)]

    def positions(self, step: int, part: int) -> Tensor:
        """int64: which of the positions of a batch, all windows after each other, are compared."""
        count = self._settings.batch * self._settings.window
        kept = max(1, round(count * self._settings.positions))
        order = np.random.default_rng([self._settings.seed, 0, step, part]).permutation(count)
        return torch.from_numpy(np.sort(order[:kept]))

    def _order(self, turn: int) -> list[int]:
        order: list[int] = np.random.default_rng([self._settings.seed, 1, turn]).permutation(len(self.learned)).tolist()
        return order
