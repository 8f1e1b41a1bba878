"""What a guess costs: how many tokens the other rows of a step would have had in the time it takes."""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.2  # of a new measurement
_REFRESH = 64  # steps with guesses after which one without is measured anew
_UNKNOWN, _LEAST = 0.2, 0.01  # of a step's time: a row that was never measured; a row that seems to cost nothing


@dataclass(slots=True)
class _Step:
    """What steps of so many sequences took, and how much longer they took with guesses, of which they had `rows`."""

    seconds: float
    longer: float = 0.0
    rows: float = 0.0
    uses: int = 0


class RowPrice:
    """Learns from measured steps, by their number of sequences, as a step of many is bounded by arithmetic already."""

    def __init__(self) -> None:
        self._steps: dict[int, _Step] = {}
        self._disturbed = False

    def of(self, sequences: int) -> float | None:
        """In tokens; None where a step without guesses has to be measured first."""
        measured = self.measured(sequences)
        return None if measured is None else sequences * measured[1] / measured[0]

    def measured(self, sequences: int) -> tuple[float, float] | None:
        """Seconds of a step without guesses, and of a row more; None where the first has to be measured."""
        step = self._steps.get(sequences)
        if step is None or step.uses >= _REFRESH:
            return None
        row = step.longer / step.rows if step.rows else _UNKNOWN * step.seconds
        return step.seconds, max(_LEAST * step.seconds, row)

    def learn(self, sequences: int, guesses: int, prompt_tokens: int, seconds: float) -> None:
        """The oldest step in flight took so long by itself. One with a prompt tells nothing, nor does the one after."""
        disturbed, self._disturbed = self._disturbed, bool(prompt_tokens)
        if disturbed or prompt_tokens or not sequences:
            return
        step = self._steps.get(sequences)
        if step is None:
            if not guesses:
                self._steps[sequences] = _Step(seconds)
        elif guesses:
            # One step that took ten times as long, as the machine was busy, counts for little.
            longer = min(seconds - step.seconds, guesses * step.seconds)
            step.longer += _WEIGHT * (longer - step.longer)
            step.rows += _WEIGHT * (guesses - step.rows)
            step.uses += 1
        else:
            step.seconds += _WEIGHT * (min(seconds, 2 * step.seconds) - step.seconds)
            step.uses = 0
