"""One request on its way: its journal, and the merging of replicas' news into what the client gets.

The journal of an output is its prompt and the tokens generated so far. When its replica is lost, the output is
submitted to another one as a prompt of both, and goes on at the next index: the draw of a token depends on the seed and
the position alone, so the client sees the same tokens as if nothing had happened. When this gateway is lost, the client
brings the journal to another one (`resumption.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from time import monotonic

from cluster.gateway.fleet import Fleet
from cluster.gateway.kept import Kept
from cluster.gateway.link import Link, LinkLost
from cluster.gateway.record import REASONS, RequestRecord
from cluster.gateway.requests import Job
from cluster.gateway.resumption import resume_token
from cluster.metrics.gateway import GatewayMetrics
from cluster.text import Detokenizer, Tokenizer
from phalanx.v1 import inference_pb2, replica_pb2

_News = replica_pb2.SequenceNews | LinkLost

_MOST_UNREAD = 256  # tokens of an output that may wait for its client; then it pauses until all are read
_RETRY_S = 0.1  # how soon an output that lost its replica knocks at a full one again

_REASONS = {
    replica_pb2.SEQUENCE_END_STOP: inference_pb2.FINISH_REASON_STOP,
    replica_pb2.SEQUENCE_END_LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}


class NoReplica(Exception):
    """No replica is ready, or none became ready in time."""


class QueuesFull(Exception):
    """Every replica's waiting queue is full."""


class Late(Exception):
    """The request waited until its deadline could no longer be met."""


class Shed(Exception):
    """The request waited until its first token could no longer keep the objective."""


class Refused(Exception):
    """The replica says that it can never run this."""


class _Output:
    """The journal of one of a request's outputs."""

    def __init__(self, index: int, detokenizer: Detokenizer | None) -> None:
        self.index = index
        self.tokens: list[int] = []
        self.detokenizer = detokenizer
        self.cached_tokens = 0
        self.ttft = 0.0
        self.link: Link | None = None
        self.key = 0
        self.unread = 0  # tokens that wait until the client has read those before
        self.paused = False
        self.rested = False  # it was paused once
        self.full: set[Link] = set()  # replicas whose queue was full this time
        self.unsent = ""  # text that came with tokens the client has from another gateway
        self.resumable = False  # the client has its resume token


class Generation:
    """Runs a job. Iterate `responses` once; closing it early frees what the request holds on the replicas."""

    def __init__(
        self,
        job: Job,
        fleet: Fleet,
        kept: Kept,
        metrics: GatewayMetrics,
        tokenizer: Tokenizer | None,
        arrival: float,
        recovery_s: float,
        record: RequestRecord,
    ) -> None:
        self._job = job
        self._record = record
        self._kept = kept
        self._metrics, self._tenant = metrics, metrics.of(job.caller.tenant)
        self._answering = False  # the client has a part of the answer
        self._fleet = fleet
        self._arrival = arrival
        self._recovery_s = recovery_s
        self._news: asyncio.Queue[tuple[_Output, _News]] = asyncio.Queue()
        self._ahead: tuple[_Output, _News] | None = None  # taken from the queue too early
        self._running = {
            index: _Output(index, None if tokenizer is None else Detokenizer(tokenizer, job.stop))
            for index in job.indexes
        }
        for begun in job.begun:
            output = self._running[begun.index]
            output.tokens, output.detokenizer, output.unsent = list(begun.tokens), begun.detokenizer, begun.unsent
            output.cached_tokens, output.ttft = begun.cached_tokens, begun.ttft

    async def responses(self) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        """The outputs' news as they come.

        Raises:
            NoReplica: none is ready, or a lost one was not replaced within `recovery_s` seconds.
            QueuesFull: there is no room for the request now.
            Late: it waited for so long that its deadline cannot be met.
            Shed: it waited for so long that the objective for first tokens cannot be kept.
            Refused: it can never run.
        """
        try:
            ended = {begun.index: begun.finish_reason for begun in self._job.begun if begun.finish_reason}
            for output in self._running.values():
                if output.index not in ended:
                    self._start(output)
            for index, reason in ended.items():
                yield self._response(self._running[index], [], "", reason)
            while self._running:
                output, news = await self._next()
                if isinstance(news, LinkLost):
                    await self._restart(output, "replica_lost")
                    self._metrics.resumed("replica")
                elif news.end == replica_pb2.SEQUENCE_END_QUEUE_FULL:
                    await self._try_next(output)
                elif news.end == replica_pb2.SEQUENCE_END_SHED:
                    await self._shed(output)
                elif news.end == replica_pb2.SEQUENCE_END_EXPIRED:
                    raise Late("the request waited for a place until it could no longer be answered in time")
                elif news.end == replica_pb2.SEQUENCE_END_REJECTED:
                    raise Refused(news.detail)
                elif (response := self._take(output, news)) is not None:
                    yield response
        except (asyncio.CancelledError, GeneratorExit):
            self._broken_off("cancelled")
            raise
        except Exception:
            if self._answering:
                self._broken_off("error")
            raise
        finally:
            for output in self._running.values():
                if output.link is not None:
                    output.link.cancel(output.key)

    def _broken_off(self, why: str) -> None:
        """Those that have not ended never will."""
        for _ in self._running:
            self._tenant.ended(why, monotonic() - self._arrival)

    def _start(self, output: _Output) -> None:
        link = self._fleet.choose(output.full)
        if link is None:
            if output.full:
                raise QueuesFull
            raise NoReplica("no replica is ready")
        self._submit(output, link, "replica_full")

    async def _try_next(self, output: _Output) -> None:
        """Its replica is full. What has not begun is sent away when all are full; what has begun waits."""
        assert output.link is not None
        output.full.add(output.link)
        output.link = None
        if not output.tokens:
            self._start(output)
            return
        await asyncio.sleep(_RETRY_S)
        output.full.clear()
        await self._restart(output, "replica_full")

    async def _shed(self, output: _Output) -> None:
        """What the client has the beginning of is finished, however late."""
        if not self._answering:
            self._kept.shed()
            raise Shed("the first token could not come within the deployment's objective: try again later")
        await self._restart(output, "late")

    async def _restart(self, output: _Output, cause: str) -> None:
        """Sends the output to whichever replica is ready, as soon as there is one."""
        output.link = None
        try:
            async with asyncio.timeout(self._recovery_s):
                while (link := self._fleet.choose()) is None:
                    if self._fleet.closed:
                        raise NoReplica("this gateway was stopped before the request had finished: send it again")
                    await self._fleet.change()
        except TimeoutError:
            raise NoReplica(f"the replica was lost and none replaced it within {self._recovery_s:.0f} s") from None
        self._submit(output, link, cause)

    def _submit(self, output: _Output, link: Link, cause: str) -> None:
        prompt = self._job.prompt
        submit = replica_pb2.Submit(
            token_ids=[*prompt, *output.tokens],
            prompt_len=len(prompt),
            sampling=self._job.samplings[output.index],
            priority=self._job.priority,
            tenant=self._job.caller.tenant,
            weight=self._job.caller.weight,
            request_id=self._record.request_id,
        )
        if self._job.deadline is not None:
            submit.timeout_ms = max(1, round((self._job.deadline - monotonic()) * 1000))
        submit.traceparent = self._record.sent(output.index, link.replica, len(output.tokens), cause)
        output.link, output.paused = link, False
        output.key = link.submit(submit, partial(self._deliver, output))

    def _deliver(self, output: _Output, news: _News) -> None:
        self._news.put_nowait((output, news))
        if isinstance(news, LinkLost):
            return
        output.unread += len(news.token_ids)
        if output.unread > _MOST_UNREAD and not (output.paused or news.end) and output.link is not None:
            output.paused = output.rested = True
            output.link.pause(output.key)

    def _let_go_on(self) -> None:
        """The client has read all that came before: its outputs need rest no more."""
        for output in self._running.values():
            if output.paused and not output.unread and output.link is not None:
                output.paused = False
                output.link.unpause(output.key)

    async def _next(self) -> tuple[_Output, _News]:
        """The next news, with what has come after it for the same output: a client that is slower than its replica gets
        several tokens in one message."""
        self._let_go_on()
        output, news = self._ahead or await self._news.get()
        self._ahead = None
        while not (isinstance(news, LinkLost) or news.end or self._news.empty()):
            other, later = self._news.get_nowait()
            if other is not output or isinstance(later, LinkLost):
                self._ahead = other, later
                break
            first = news.first_token_index
            news.MergeFrom(later)
            news.first_token_index = first
        if not isinstance(news, LinkLost):
            output.unread -= len(news.token_ids)
        return output, news

    def _take(self, output: _Output, news: replica_pb2.SequenceNews) -> inference_pb2.GenerateResponse | None:
        first = len(output.tokens)
        repeated = first - news.first_token_index
        tokens, logprobs = list(news.token_ids[repeated:]), news.logprobs[repeated:]
        if not first and tokens:
            output.ttft = monotonic() - self._arrival
            output.cached_tokens = news.cached_tokens
            self._tenant.began(output.ttft, len(self._job.prompt), news.cached_tokens)
        reason = _REASONS.get(news.end, inference_pb2.FINISH_REASON_UNSPECIFIED)
        text = ""
        if output.detokenizer is not None:
            # The token that ends an output is not part of its text.
            stopped_by_token = reason == inference_pb2.FINISH_REASON_STOP
            text = output.detokenizer.push(tokens[:-1] if stopped_by_token else tokens)
            if output.detokenizer.stop_token_count is not None:
                tokens = tokens[: output.detokenizer.stop_token_count - first]
                reason = inference_pb2.FINISH_REASON_STOP
            elif reason:
                text += output.detokenizer.finish()
        if not (tokens or text or reason):
            return None
        response = self._response(output, tokens, text, reason, logprobs[: len(tokens)])
        if reason and not news.end and output.link is not None:
            output.link.cancel(output.key)
        return response

    def _response(
        self,
        output: _Output,
        tokens: list[int],
        text: str,
        reason: inference_pb2.FinishReason,
        logprobs: Sequence[inference_pb2.TokenLogprob] = (),
    ) -> inference_pb2.GenerateResponse:
        response = inference_pb2.GenerateResponse(
            index=output.index,
            token_ids=tokens,
            text=output.unsent + text,
            logprobs=logprobs,
            first_token_index=len(output.tokens),
            finish_reason=reason,
        )
        self._answering = True
        output.tokens += tokens
        self._tenant.tokens(len(tokens))
        output.unsent = ""
        if not output.resumable:
            response.resume_token = resume_token(self._job, output.index, output.cached_tokens, output.ttft)
            output.resumable = True
        if reason:
            del self._running[output.index]
            response.usage.CopyFrom(self._usage(output))
            usage, tpot_s = response.usage, None
            if not output.rested:
                tpot_s = self._kept.finished(usage.ttft_seconds, usage.duration_seconds, usage.completion_tokens)
            self._tenant.ended(REASONS[reason], usage.duration_seconds, tpot_s)
        return response

    def _usage(self, output: _Output) -> inference_pb2.Usage:
        return inference_pb2.Usage(
            prompt_tokens=len(self._job.prompt),
            cached_tokens=output.cached_tokens,
            completion_tokens=len(output.tokens),
            ttft_seconds=output.ttft,
            duration_seconds=monotonic() - self._arrival,
        )
