"""How many prompt tokens may join a step while other sequences decode: a fair share for both.

Every prompt token in a step makes the tokens of all decoding sequences later. Without a bound, a chunk of a long prompt
makes a step tens of times as long; with a tight one, many prompts that come at once would start one after the other,
and small batches waste the machine. So each prompt that is being read may stretch a step to `max_stretch` times its
length without prompts, and each further prompt by as much again: one long prompt disturbs little, and a rush of prompts
is read at full speed.

Where an objective says how long the time between tokens may be on average (`workers.objectives`), that takes the place
of `max_stretch`: prompts get all that a step has left of it.

Predictions come from measured steps alone. With several pipeline stages the time that a decoding sequence sees is that
of a whole round, one step of every micro-batch and one more; so the bound is on a round and is divided among its steps.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_CHUNK = 4  # prompt tokens that a step may take in any case, so that prompts make progress

_REFRESH = 64  # paced steps after which the time without prompts is measured anew
_FASTER = 0.8  # the cost of a prompt token falls slowly and rises at once: a wrong guess makes a chunk too small
_WEIGHT = 0.25  # of a new measurement of a step without prompts
_AIM = 0.9  # of the objective, as some steps take longer than predicted


def steps_of_round(micro_batches: int) -> int:
    """That are in flight at once while prompts are read: see `workers.scheduler`."""
    return micro_batches + (micro_batches > 1)


@dataclass(slots=True)
class _Decode:
    """What steps without prompts took."""

    seconds: float
    uses: int = 0


class Pacer:
    """Learns what steps cost and bounds the prompt tokens of the next.

    `started` and `finished` are called for every step, in the order of the steps.
    """

    def __init__(self, max_stretch: float, micro_batches: int, tpot_s: float | None = None) -> None:
        self._spare = max_stretch - 1
        self._tpot_s = tpot_s
        self._micro_batches, self._steps_of_round = micro_batches, steps_of_round(micro_batches)
        self._decodes: dict[int, _Decode] = {}  # by about how many sequences decode
        self._prompt_token_s: float | None = None
        self._reading = 0  # steps in flight with prompt tokens
        self._read_until = 0.0  # when the last step with prompt tokens ended
        self._last_end = 0.0

    def prompt_tokens(self, decoding: int, prompts: int) -> int | None:
        """The most prompt tokens for the next step, None for no bound, 0 where a step without any has to be measured.

        `decoding` sequences wait for their next token, in this step or in those in flight; `prompts` are to be read.
        """
        if not decoding or not prompts:
            return None
        known = self._decodes.get(_about(decoding))
        if known is None or known.uses >= _REFRESH:
            return 0
        known.uses += 1
        if self._prompt_token_s is None:
            return MIN_CHUNK
        seconds = self._spare_s(known.seconds, prompts) / self._steps_of_round
        return max(MIN_CHUNK, int(seconds / self._prompt_token_s))

    def _spare_s(self, decode_s: float, prompts: int) -> float:
        """How many seconds prompts may take beside decodes that take `decode_s`."""
        if self._tpot_s is None:
            return self._spare * prompts * decode_s
        return max(0.0, _AIM * self._tpot_s - decode_s)

    def reading_s(self, tokens: int) -> float:
        """How many seconds a prompt of so many tokens takes at least; 0 while that is not known."""
        return tokens * (self._prompt_token_s or 0.0)

    def started(self, prompt_tokens: int) -> None:
        """A step with so many prompt tokens is on its way."""
        if prompt_tokens:
            self._reading += 1

    def finished(
        self, decoding: int, decoded: int, prompt_tokens: int, start: float, end: float, drafted: int = 0
    ) -> float:
        """The oldest step in flight has ended, in which `decoded` of the sequences that decode got a token; `start` and
        `end` are seconds of one clock. Returns how many it took by itself. Of one with guesses (`workers.speculation`)
        nothing is learned here."""
        own = end - max(start, self._last_end)
        self._last_end = end
        if prompt_tokens:
            self._reading -= 1
            self._read_until = end
            if prompt_tokens >= MIN_CHUNK:
                self._learn_prompt(decoding, decoded, prompt_tokens, own)
        elif decoding and not drafted and not self._reading and start >= self._read_until:
            self._learn_decode(decoding, own if self._micro_batches == 1 else end - start)
        return own

    def _learn_decode(self, decoding: int, seconds: float) -> None:
        bucket = _about(decoding)
        known = self._decodes.get(bucket)
        if known is not None:
            # One step that took ten times as long, as the machine was busy, counts for little.
            seconds = known.seconds + _WEIGHT * (min(seconds, 2 * known.seconds) - known.seconds)
        self._decodes[bucket] = _Decode(seconds)

    def _learn_prompt(self, decoding: int, decoded: int, tokens: int, seconds: float) -> None:
        if decoded:
            known = self._decodes.get(_about(decoding))
            if known is None:
                return
            seconds -= known.seconds * min(1 / self._micro_batches, decoded / decoding)
        measured = max(seconds / tokens, 1e-9)
        before = self._prompt_token_s
        self._prompt_token_s = measured if before is None else min(max(measured, _FASTER * before), 2 * before)


def _about(sequences: int) -> int:
    """The first three bits of a number. By fewer bits the time that seven sequences take more than four would pass for
    that of a prompt's tokens."""
    shift = max(0, sequences.bit_length() - 3)
    return sequences >> shift << shift
