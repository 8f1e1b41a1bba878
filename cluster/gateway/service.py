"""`phalanx.v1.Inference`: requests in, streams of tokens and text out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from cluster.gateway.admission import Admission, Place
from cluster.gateway.caller import CALLER
from cluster.gateway.errors import Context, recorded, statuses
from cluster.gateway.fleet import Fleet
from cluster.gateway.generation import Generation, NoReplica
from cluster.gateway.kept import Kept
from cluster.gateway.model import ServedModel
from cluster.gateway.record import RequestRecord
from cluster.gateway.request_spans import RequestSpans
from cluster.gateway.requests import (
    MAX_OUTPUTS,
    InvalidRequest,
    check_count,
    check_ids,
    check_job,
    check_length,
    check_messages,
    check_request_id,
    check_size,
)
from cluster.gateway.resumption import chat_time, taken_up
from cluster.metrics.gateway import GatewayMetrics
from cluster.text import ChatTemplateError, Tokenizer, TokenizerMissing
from phalanx.v1 import inference_pb2, inference_pb2_grpc

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Answers from the replicas of `fleet`; `model` is None until the coordinator has named it."""

    def __init__(
        self,
        fleet: Fleet,
        admission: Admission,
        kept: Kept,
        metrics: GatewayMetrics,
        recovery_s: float,
        tracer: Tracer | None = None,
    ) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._kept = kept
        self._admission = admission
        self._recovery_s = recovery_s
        self._tracer = tracer
        self.model: ServedModel | None = None

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        arrival = monotonic()
        async with statuses(context, self._admission, self._metrics):
            with self._recorded(request, context, arrival) as record, self._place(request.n) as place:
                match request.WhichOneof("prompt"):
                    case "text":
                        check_size(len(request.text), self._served.limits, self._tokenizer.longest_token)
                        prompt = await asyncio.to_thread(self._tokenizer.encode, request.text)
                    case "token_ids":
                        check_length(len(request.token_ids.ids), self._served.limits)
                        prompt = list(request.token_ids.ids)
                    case _:
                        raise InvalidRequest("the request has no prompt: set text or token_ids")
                async with aclosing(self._run(prompt, request, context, place, record, arrival)) as responses:
                    async for response in responses:
                        yield response

    async def Chat(
        self, request: inference_pb2.ChatRequest, context: Context
    ) -> AsyncIterator[inference_pb2.ChatResponse]:
        arrival = monotonic()
        async with statuses(context, self._admission, self._metrics):
            with self._recorded(request, context, arrival) as record:
                messages = check_messages(request.messages)
                tokenizer = self._tokenizer
                characters = sum(len(message["role"]) + len(message["content"]) for message in messages)
                check_size(characters, self._served.limits, tokenizer.longest_token)
                now = chat_time(request.resume)
                with self._place(request.n) as place:
                    try:
                        prompt = await asyncio.to_thread(tokenizer.chat_prompt, messages, now)
                    except ChatTemplateError as error:
                        raise InvalidRequest(str(error)) from error
                    answer = self._run(prompt, request, context, place, record, arrival, now.isoformat())
                    async with aclosing(answer) as responses:
                        async for response in responses:
                            yield inference_pb2.ChatResponse(output=response)

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        async with statuses(context, self._admission, self._metrics):
            tokenizer = self._tokenizer
            check_size(len(request.text), self._served.limits, tokenizer.longest_token, "the text")
            with self._place(1):
                ids = await asyncio.to_thread(tokenizer.encode, request.text, not request.omit_special)
            return inference_pb2.TokenizeResponse(token_ids=ids)
        raise AssertionError("a call that failed has been aborted")

    async def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: Context
    ) -> inference_pb2.DetokenizeResponse:
        async with statuses(context, self._admission, self._metrics):
            check_count(len(request.token_ids), self._served.limits, "token_ids")
            check_ids(request.token_ids, self._served.limits)
            with self._place(1):
                ids, tokenizer = list(request.token_ids), self._tokenizer
                text = await asyncio.to_thread(tokenizer.decode, ids, not request.keep_special)
            return inference_pb2.DetokenizeResponse(text=text)
        raise AssertionError("a call that failed has been aborted")

    async def GetModel(
        self, request: inference_pb2.GetModelRequest, context: Context
    ) -> inference_pb2.GetModelResponse:
        async with statuses(context, self._admission, self._metrics):
            return self._served.describe()
        raise AssertionError("a call that failed has been aborted")

    async def _run(
        self,
        prompt: Sequence[int],
        request: inference_pb2.GenerateRequest | inference_pb2.ChatRequest,
        context: Context,
        place: Place,
        record: RequestRecord,
        arrival: float,
        chat_time: str = "",
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        model = self._served
        job = check_job(prompt, request.sampling, request.n, request.priority, model.limits)
        if job.stop and model.tokenizer is None:
            raise InvalidRequest("sampling.stop needs a tokenizer, and the model has none: use stop_token_ids")
        left_s = context.time_remaining()
        deadline = None if left_s is None else monotonic() + left_s
        job = replace(job, chat_time=chat_time, caller=CALLER.get(), deadline=deadline)
        if request.HasField("resume"):
            job = await asyncio.to_thread(taken_up, job, request.resume, model)
            arrival -= request.resume.elapsed_seconds
            self._metrics.resumed("gateway", len(job.begun))
        place.settle(job.tokens(model.limits))
        record.begun(job, model.plan.model.name)
        with (
            CALLER.get().allowance.request(len(job.indexes), len(job.prompt)) as spend,
            self._metrics.streams.track_inprogress(),
        ):
            generation = Generation(
                job, self._fleet, self._kept, self._metrics, model.tokenizer, arrival, self._recovery_s, record
            )
            async with aclosing(generation.responses()) as responses:
                async for response in responses:
                    spend(len(response.token_ids))
                    record.took(response)
                    yield response

    def _recorded(
        self, request: inference_pb2.GenerateRequest | inference_pb2.ChatRequest, context: Context, arrival: float
    ) -> AbstractContextManager[RequestRecord]:
        check_request_id(request.request_id)
        method = "Chat" if isinstance(request, inference_pb2.ChatRequest) else "Generate"
        spans = None if self._tracer is None else RequestSpans(self._tracer, method, context)
        return recorded(RequestRecord(request.request_id, CALLER.get().tenant, arrival, spans))

    def _place(self, outputs: int) -> AbstractContextManager[Place]:
        """Held before a prompt is made tokens of, so that a flood of prompts costs no more than refusing them."""
        return self._admission.place(CALLER.get(), min(max(outputs, 1), MAX_OUTPUTS))

    @property
    def _served(self) -> ServedModel:
        if self.model is None:
            raise NoReplica("the gateway has not heard from the coordinator yet: try again in a moment")
        return self.model

    @property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = self._served.tokenizer
        if tokenizer is None:
            raise TokenizerMissing("the model came without a tokenizer: send token_ids")
        return tokenizer
