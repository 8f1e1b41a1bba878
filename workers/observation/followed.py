"""What becomes of single sequences in the engine, for those that want to know: the sequences that are traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import time_ns

from workers.request import FinishReason, Output, Request
from workers.step import Step


@dataclass(slots=True)
class Followed:
    """The life of a sequence. Times are in nanoseconds since 1970, 0 for what has not come.

    It waited from `arrived` to `started`, its first step, was read until `answered`, when its first token was known,
    and generated until `ended`. `chunks` are the steps that read it, `steps` those after them, `reread` when it had
    lost its place and began anew.
    """

    request: Request
    arrived: int
    started: int = 0
    answered: int = 0
    ended: int = 0
    chunks: int = 0
    steps: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    reread: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    computed: int = 0  # how far the last step went


class Follower:
    """Called by the engine's thread; gives each life to `tell` when it has ended. Costs nothing while it follows none:
    ask `follows` first."""

    def __init__(self, tell: Callable[[Followed], None]) -> None:
        self._tell = tell
        self.follows: dict[int, Followed] = {}  # by key

    def begin(self, requests: Iterable[Request]) -> None:
        """Follows those that are traced."""
        for request in requests:
            if request.traceparent:
                self.follows[request.key] = Followed(request, time_ns())

    def launched(self, step: Step) -> None:
        now = time_ns()
        starts = step.plan.rows[:, 1].tolist()
        for sequence, start, end in zip(step.sequences, starts, step.ends, strict=True):
            life = self.follows.get(sequence.request.key)
            if life is None:
                continue
            if not life.started:
                life.started = now
            elif start < life.computed:
                life.reread.append(now)
            life.computed = end
            if life.answered:
                life.steps += 1
            else:
                life.chunks += 1

    def noted(self, outputs: Iterable[Output]) -> None:
        now = time_ns()
        for output in outputs:
            life = self.follows.get(output.key)
            if life is None:
                continue
            if output.token_ids and not life.answered:
                life.answered = now
            life.tokens += len(output.token_ids)
            life.cached_tokens = output.cached_tokens
            if output.finish_reason is not None:
                life.ended, life.finish_reason = now, output.finish_reason
                del self.follows[output.key]
                self._tell(life)
