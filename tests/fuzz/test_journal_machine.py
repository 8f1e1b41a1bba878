"""The journal of a stream: whatever replicas say, lose and say again, a client gets each token once and in order."""

from __future__ import annotations

import asyncio
import random
from time import monotonic

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.gateway.fleet import Fleet
from cluster.gateway.generation import Generation, _Output
from cluster.gateway.kept import Kept
from cluster.gateway.link import LinkLost
from cluster.gateway.record import RequestRecord
from cluster.gateway.requests import Limits, check_job
from cluster.metrics.gateway import GatewayMetrics
from phalanx.v1 import inference_pb2, replica_pb2
from tests.fuzz.examples import examples

_VOCAB, _OUTPUTS, _LONGEST = 50, 3, 30


class JournalMachine(RuleBasedStateMachine):
    """The truth is a list of tokens for each output; what a replica has said of it since the output came to it, and
    what the client has got."""

    @initialize(seed=st.integers(0, 1000))
    def start(self, seed: int) -> None:
        sampling = inference_pb2.Sampling(max_tokens=_LONGEST, seed=seed, logprobs=0)
        job = check_job([1, 2, 3], sampling, _OUTPUTS, 0, Limits(_VOCAB, 100))
        record = RequestRecord("", "", 0.0, None)
        self.generation = Generation(job, Fleet(), Kept(), GatewayMetrics(), None, monotonic(), 1.0, record)
        self.outputs = list(self.generation._running.values())
        rng = random.Random(seed)
        self.truth = [[rng.randrange(_VOCAB) for _ in range(rng.randrange(1, _LONGEST))] for _ in self.outputs]
        self.said = [0] * _OUTPUTS
        self.lost = [False] * _OUTPUTS  # its replica is gone, and the news of that not yet read
        self.over = [False] * _OUTPUTS  # its replica has said that it ended
        self.got: list[list[int]] = [[] for _ in self.outputs]
        self.logprobs: list[list[float]] = [[] for _ in self.outputs]
        self.ended = [False] * _OUTPUTS

    @rule(index=st.integers(0, _OUTPUTS - 1), count=st.integers(0, 8), again=st.integers(0, 5))
    def say(self, index: int, count: int, again: int) -> None:
        """News of some tokens, which may begin with ones that were told before."""
        if self.lost[index] or self.over[index]:
            return
        # News that wait are merged with what comes after them; one replica does not repeat itself.
        first = self.said[index] if self._waiting(self.outputs[index]) else max(0, self.said[index] - again)
        tokens = self.truth[index][first : self.said[index] + count]
        self.said[index] = first + len(tokens)
        self.over[index] = self.said[index] == len(self.truth[index]) and count > 0
        news = replica_pb2.SequenceNews(
            first_token_index=first,
            token_ids=tokens,
            logprobs=[inference_pb2.TokenLogprob(logprob=float(token)) for token in tokens],
            end=replica_pb2.SEQUENCE_END_LENGTH if self.over[index] else replica_pb2.SEQUENCE_END_UNSPECIFIED,
        )
        self.generation._deliver(self.outputs[index], news)

    @rule(index=st.integers(0, _OUTPUTS - 1))
    def lose(self, index: int) -> None:
        if not (self.lost[index] or self.over[index]):
            self.lost[index] = True
            self.generation._deliver(self.outputs[index], LinkLost("gone"))

    @precondition(lambda self: self._any_news())
    @rule()
    def read(self) -> None:
        output, news = asyncio.run(self.generation._next())
        if isinstance(news, LinkLost):
            # Another replica goes on after what the journal has: see `_submit`.
            self.said[output.index], self.lost[output.index] = len(output.tokens), False
            return
        response = self.generation._take(output, news)
        if response is None:
            return
        assert not self.ended[output.index]
        assert response.index == output.index
        assert response.first_token_index == len(self.got[output.index])
        assert bool(response.resume_token) == (not self.got[output.index])
        self.got[output.index] += response.token_ids
        self.logprobs[output.index] += [entry.logprob for entry in response.logprobs]
        if response.finish_reason:
            self.ended[output.index] = True
            assert response.usage.completion_tokens == len(self.got[output.index])

    @invariant()
    def each_token_comes_once_and_in_order(self) -> None:
        for got, logprobs, truth in zip(self.got, self.logprobs, self.truth, strict=True):
            assert got == truth[: len(got)]
            assert logprobs == [float(token) for token in got]

    def teardown(self) -> None:
        for index in range(_OUTPUTS):
            while not self.ended[index]:
                self.say(index, 4, 1)
                while self._any_news():
                    self.read()
        assert self.got == self.truth
        assert not self.generation._running

    def _any_news(self) -> bool:
        return self.generation._ahead is not None or not self.generation._news.empty()

    def _waiting(self, output: _Output) -> bool:
        """Whether news of it have not been read."""
        queued = [item for item, _ in self.generation._news._queue]  # type: ignore[attr-defined]
        ahead = self.generation._ahead
        return output in queued or (ahead is not None and ahead[0] is output)


TestJournal = JournalMachine.TestCase
TestJournal.settings = examples(80, stateful_step_count=40)
