"""How many guesses of a model are worth the passes that they take."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from workers.speculation.acceptance import MOST


def guesses_worth(
    rates: Seq[float], limits: Seq[int], room: int, step_s: float, row_s: float, pass_s: float
) -> list[int]:
    """For each sequence of a step, as long as one more pass over the batch brings more tokens a second than there would
    be without it.

    `rates` are the shares of right guesses, `limits` the most guesses of each sequence, `room` that of all together. A
    step takes `step_s` without guesses, each guess makes it `row_s` longer, each pass of the guessing model takes
    `pass_s`.
    """
    counts = [0] * len(rates)
    chances = [1.0] * len(rates)
    tokens, seconds = float(len(rates)), step_s
    going = range(len(rates))
    for depth in range(MOST):
        going_on = []
        gain = 0.0
        for i in going:
            chance = chances[i] = chances[i] * rates[i]
            # Its own row has to pay for itself.
            if limits[i] > depth and chance * seconds > row_s * tokens:
                going_on.append(i)
                gain += chance
        cost = pass_s + row_s * len(going_on)
        if len(going_on) > room or gain * seconds <= cost * tokens:
            break
        going = going_on  # type: ignore[assignment]
        room -= len(going_on)
        tokens += gain
        seconds += cost
        for i in going_on:
            counts[i] += 1
    return counts
