"""Rank 0's loop: requests in, StepPlans out to all ranks, tokens back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from partitioning.plan import Plan
from workers.collectives import CollectiveStalled
from workers.kv_cache import BlockManager
from workers.observation.followed import Follower
from workers.observation.measures import Durations, Measures
from workers.pacing import Pacer
from workers.parallel import ParallelContext
from workers.request import EngineConfig, EngineLoad, Output, Request, TokenLogprob
from workers.runner import Runner
from workers.sampling import NOTHING_SAMPLED, Drawn, Sampled
from workers.scheduler import Scheduler
from workers.speculation.draft_model import DraftModel, DraftStage
from workers.speculation.model_speculation import ModelSpeculation
from workers.speculation.prompt_lookup import PromptLookup
from workers.speculation.speculation import LookupSpeculation, Speculation
from workers.step import Step
from workers.step_plan import Kind, control_plan

_BEATS = 4  # times in the deadline of a step an idle engine tells its ranks that it lives
_FEW_STREAMS = 16  # more of them have their tokens wait longer,
_LONGEST_NEWS_S = 0.1  # up to this


class EngineFull(RuntimeError):
    """The waiting queue is at its bound."""


class EngineStopped(RuntimeError):
    """The engine's loop has ended."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step that has been sent, when its preparation began, and what rank 0 sampled if it is of the last stage."""

    step: Step
    started: float
    sampled: Sampled | Drawn | None


class Engine:
    """Generates tokens for many requests at once. `submit`, `cancel`, `load` and `stop` may be called from any thread;
    `run` is the loop and has a thread of its own. Set `follower` before, to learn what becomes of traced requests."""

    def __init__(
        self,
        plan: Plan,
        config: EngineConfig,
        runner: Runner,
        context: ParallelContext,
        draft: DraftStage | None = None,
    ) -> None:
        self._config = config
        self._vocab_size = plan.model.vocab_size
        self._runner = runner
        self._context = context
        self._blocks = BlockManager(plan.kv_blocks, plan.kv_block_size, config.prefix_caching)
        self._pacer = Pacer(config.max_stretch, plan.pp, config.objectives.tpot_s)
        self._speculation = self._chosen_speculation(draft)
        look_ahead = runner.looks_ahead and self._speculation is None  # guesses follow what is known
        self._scheduler = Scheduler(config, self._blocks, self._pacer, plan.pp, self._speculation, look_ahead)
        self._in_flight: deque[_InFlight] = deque()
        self._news: list[Output] = []
        self._unheard: set[int] = set()  # keys of requests of which nothing has been handed over
        self._pressing: set[int] = set()  # keys of requests whose news may not wait
        self._handed_over = 0.0
        self.follower: Follower | None = None
        self._wake = threading.Condition()
        self._inbox: list[Request] = []
        self._orders: list[tuple[Callable[[int], Output | None], int]] = []
        self._stopping = self._aborted = False
        self._generated = 0
        self._parts = {part: Durations() for part in ("schedule", "draft", "send", "publish", "wait", "commit")}
        self._drafting_s = 0.0  # of all guesses so far

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ValueError: it can never run: no tokens, too long for the model or for the KV cache.
            EngineFull: as many requests or tokens wait as may.
            EngineStopped: the loop has ended.
        """
        self._check(request)
        with self._wake:
            if self._stopping:
                raise EngineStopped("the engine has stopped")
            if not self._scheduler.reserve(request):
                bounds = self._scheduler.bounds
                raise EngineFull(
                    f"{bounds.held_requests} requests are waiting already, of {bounds.held_tokens} tokens; "
                    "try again later"
                )
            self._inbox.append(request)
            self._wake.notify()

    def cancel(self, key: int) -> None:
        """Ends a request within one step; unknown keys are ignored, as it may just have finished."""
        self._order(self._scheduler.cancel, key)

    def park(self, key: int) -> None:
        """Lets a request rest, whose place and KV blocks others get within one step; unknown keys are ignored."""
        self._order(self._scheduler.park, key)

    def unpark(self, key: int) -> None:
        """Lets it go on with the token after its last."""
        self._order(self._scheduler.unpark, key)

    def load(self) -> EngineLoad:
        """As of now, give or take what a step changes while it is looked at."""
        speculation = self._speculation
        return EngineLoad(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            parked=self._scheduler.parked,
            free_blocks=self._blocks.free,
            total_blocks=self._blocks.num_blocks,
            steps=self._scheduler.steps,
            generated_tokens=self._generated,
            drafted_tokens=0 if speculation is None else speculation.drafted,
            accepted_tokens=0 if speculation is None else speculation.accepted,
            cached_blocks=self._blocks.cached,
            prompt_tokens=self.measures.queried_tokens,
            cached_prompt_tokens=self.measures.hit_tokens,
        )

    def timings(self) -> dict[str, float]:
        """Seconds spent so far by part of a step."""
        return {part: durations.sum for part, durations in self.parts().items()}

    def parts(self) -> dict[str, Durations]:
        """How long the parts of steps took; "forward" and "sample" are rank 0's own share."""
        return {**self._parts, **self._runner.parts}

    @property
    def measures(self) -> Measures:
        """What the scheduler has counted."""
        return self._scheduler.measures

    def stop(self) -> None:
        """Ends `run` after the steps in flight; requests not finished by then are dropped."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def abort(self) -> None:
        """Ends `run` with CollectiveStalled even if it waits for a rank that is gone."""
        self._aborted = True
        self.stop()
        self._context.abort()

    @torch.inference_mode()
    def run(self, on_outputs: Callable[[list[Output]], None]) -> None:
        """Runs steps until `stop`, calling `on_outputs` with the news of each.

        The news of a step are handed over when the next plan is on its way: other ranks then need not wait for that,
        and threads that it wakes work while the model computes. Where they need the cores that the model computes on,
        every waking costs it time, so tokens of several steps go together: see `EngineConfig.news_interval_s`.

        Raises:
            CollectiveStalled: a rank is gone; the replica has to be built anew.
        """
        try:
            while self._await_work():
                self._take_inbox()
                while len(self._in_flight) < self._scheduler.most_in_flight and self._launch(on_outputs):
                    pass
                if self._in_flight:
                    if self._pressing:  # no step could be begun that would have taken them along
                        self._hand_over_pressing(on_outputs)
                    self._finish_oldest()
                else:
                    self._hand_over(on_outputs)
            while self._in_flight:
                self._finish_oldest()
            self._hand_over(on_outputs)
            self._context.send_plan(control_plan(Kind.STOP, self._scheduler.steps))
        finally:
            self.stop()

    def _chosen_speculation(self, draft: DraftStage | None) -> Speculation | None:
        config = self._config
        if draft is not None:
            return ModelSpeculation(config, DraftModel(draft, config, self._blocks))
        return None if config.speculation == "off" else LookupSpeculation(config, PromptLookup())

    def _order(self, what: Callable[[int], Output | None], key: int) -> None:
        with self._wake:
            self._orders.append((what, key))
            self._wake.notify()

    def _check(self, request: Request) -> None:
        tokens, config = len(request.token_ids), self._config
        if not 0 < request.prompt_len <= tokens:
            raise ValueError(f"a request needs a prompt of at least one token, got {request.prompt_len} of {tokens}")
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < self._vocab_size:
            raise ValueError(f"token ids of this model are from 0 to {self._vocab_size - 1}")
        if (request.sampling.logprobs or 0) > self._vocab_size:
            raise ValueError(f"{request.sampling.logprobs} alternatives of a vocabulary of {self._vocab_size}")
        if tokens >= config.max_model_len:
            raise ValueError(
                f"{tokens} tokens leave no room to generate: the longest sequence is {config.max_model_len} tokens"
            )
        longest = request.most_tokens(config.max_model_len)
        if self._blocks.blocks_for(longest) > self._blocks.num_blocks:
            raise ValueError(
                f"{longest} tokens do not fit the KV cache of {self._blocks.num_blocks} blocks "
                f"of {self._blocks.block_size} tokens; ask for fewer max_tokens or serve with a larger kv_cache_tokens"
            )

    def _await_work(self) -> bool:
        """False when it is time to stop."""
        with self._wake:
            while not (self._stopping or self._has_work()):
                self._context.progress.rest("waiting for requests")
                if not self._wake.wait(self._config.collective_timeout_s / _BEATS):
                    self._context.send_plan(control_plan(Kind.IDLE, self._scheduler.steps))
            return not self._stopping

    def _has_work(self) -> bool:
        scheduler = self._scheduler
        busy = self._in_flight or scheduler.running or scheduler.waiting
        return bool(busy or self._inbox or self._orders or self._news)

    def _take_inbox(self) -> None:
        if not (self._inbox or self._orders):
            return
        with self._wake:
            requests, self._inbox = self._inbox, []
            orders, self._orders = self._orders, []
        for request in requests:
            self._scheduler.add(request)
        if self.follower is not None:
            self.follower.begin(requests)
        self._unheard.update(request.key for request in requests)
        self._note([output for order, key in orders if (output := order(key)) is not None])

    def _launch(self, on_outputs: Callable[[list[Output]], None]) -> bool:
        started = perf_counter()
        step = self._scheduler.schedule()
        scheduled = perf_counter()
        drafting = self._new_drafting_s()
        self._parts["schedule"].add(scheduled - started - drafting)
        started += drafting  # what a step takes is told apart from what its guesses took
        self._note(self._scheduler.take_expired())
        if step is None:
            return False
        if self.follower is not None and self.follower.follows:
            self.follower.launched(step)
        self._context.progress.begin("sending the plan")
        self._context.send_plan(step.plan)
        sent = perf_counter()
        if sent - self._handed_over >= self._news_wait():
            self._hand_over(on_outputs)
        elif self._pressing:
            self._hand_over_pressing(on_outputs)
        self._parts["send"].add(sent - scheduled)
        self._parts["publish"].add(perf_counter() - sent)
        self._in_flight.append(_InFlight(step, started, self._runner.run(step.plan)))
        return True

    def _new_drafting_s(self) -> float:
        """Seconds that guesses took since the last call."""
        if self._speculation is None:
            return 0.0
        before, self._drafting_s = self._drafting_s, self._speculation.drafting_s
        if drafting := self._drafting_s - before:
            self._parts["draft"].add(drafting)
        return drafting

    def _finish_oldest(self) -> None:
        oldest = self._in_flight.popleft()
        step = oldest.step
        started = perf_counter()
        alternatives = step.alternatives()
        reporting = [asked for asked in alternatives if asked is not None]
        if oldest.sampled is None:
            sampled = self._receive(step.samples, len(reporting), max(reporting, default=0))
        else:
            sampled = oldest.sampled.result()
            if self._aborted:  # what devices were computing then has been cut short, and says nothing
                raise CollectiveStalled("a rank is gone")
        received = perf_counter()
        logprobs = iter(_token_logprobs(sampled.logprobs, reporting) if reporting else ())
        seconds = self._pacer.finished(
            step.decoding, step.decoded, step.prompt_tokens, oldest.started, received, step.drafted
        )
        if self._speculation is not None:
            self._speculation.finished(len(step.sampled), step.drafted, step.prompt_tokens, seconds)
        outputs = self._scheduler.commit(
            step, sampled.tokens, [None if asked is None else next(logprobs) for asked in alternatives]
        )
        self._note(outputs)
        self._generated += sum(len(output.token_ids) for output in outputs)
        self._parts["wait"].add(received - started)
        self._parts["commit"].add(perf_counter() - received)

    def _receive(self, samples: int, reporting: int, alternatives: int) -> Sampled:
        if not samples:
            return NOTHING_SAMPLED
        width = 1 + 2 * alternatives
        result = self._context.receive_result(samples + reporting * width)
        return Sampled(result[:samples].int().tolist(), result[samples:].view(reporting, width))

    def _note(self, outputs: list[Output]) -> None:
        if self.follower is not None and self.follower.follows:
            self.follower.noted(outputs)
        for output in outputs:
            if output.finish_reason is not None or output.key in self._unheard:
                self._unheard.discard(output.key)
                self._pressing.add(output.key)
        self._news += outputs

    def _hand_over(self, on_outputs: Callable[[list[Output]], None]) -> None:
        if self._news:
            news, self._news = self._news, []
            self._pressing.clear()
            self._handed_over = perf_counter()
            on_outputs(news)

    def _hand_over_pressing(self, on_outputs: Callable[[list[Output]], None]) -> None:
        """The first and last tokens of some requests; those of the others go on waiting."""
        pressing, self._pressing = self._pressing, set()
        now = [output for output in self._news if output.key in pressing]
        self._news = [output for output in self._news if output.key not in pressing]
        on_outputs(now)

    def _news_wait(self) -> float:
        """Seconds that tokens wait now: it is messages that cost time, so many streams get longer ones, not more."""
        interval = self._config.news_interval_s
        return min(interval * max(1.0, self._scheduler.running / _FEW_STREAMS), max(interval, _LONGEST_NEWS_S))


def _token_logprobs(table: Tensor, wanted: list[int]) -> list[TokenLogprob]:
    """table [rows, 1 + 2 * n] as in `Sampled`, `wanted[i]` <= n alternatives of row i."""
    n = (table.shape[1] - 1) // 2
    return [
        TokenLogprob(row[0], tuple((int(row[1 + n + i]), row[1 + i]) for i in range(count)))
        for row, count in zip(table.tolist(), wanted, strict=True)
    ]
