"""What a client has of a stream, and the request that asks another gateway for the rest. See docs/protocol.md."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from time import monotonic

import grpc

from phalanx.errors import PhalanxError
from phalanx.messages import Chunk, chunk
from phalanx.trace_context import trace_context
from phalanx.v1 import inference_pb2

Request = inference_pb2.GenerateRequest | inference_pb2.ChatRequest
Response = inference_pb2.GenerateResponse | inference_pb2.ChatResponse


@dataclass
class _Output:
    token_ids: list[int] = field(default_factory=list)
    text_bytes: int = 0
    resume_token: bytes = b""
    finished: bool = False


class Stream:
    """One streamed request, over all the calls that it takes. `method` is that of the service; `metadata` names the
    span that the caller was in."""

    def __init__(self, request: Request) -> None:
        self.metadata = trace_context()
        self.method = "Chat" if isinstance(request, inference_pb2.ChatRequest) else "Generate"
        self._request = request
        # Without a name, each gateway would give it another one in its log.
        request.request_id = request.request_id or uuid.uuid4().hex
        self._start = monotonic()
        self._outputs: dict[int, _Output] = {}

    @property
    def begun(self) -> bool:
        """Whether anything came."""
        return bool(self._outputs)

    @property
    def resumable(self) -> bool:
        """Whether a gateway can go on where this one ended; older ones send no tokens for it."""
        return all(output.finished or output.resume_token for output in self._outputs.values())

    @property
    def complete(self) -> bool:
        return sum(output.finished for output in self._outputs.values()) == max(self._request.n, 1)

    def request(self) -> Request:
        """What to send: the request, and from the second call on what came of it."""
        if self.begun:
            self._request.resume.CopyFrom(
                inference_pb2.Resume(
                    outputs=[_received(index, output) for index, output in self._outputs.items()],
                    elapsed_seconds=monotonic() - self._start,
                )
            )
        return self._request

    def take(self, response: Response) -> Chunk:
        """Notes what came, and returns it.

        Raises:
            PhalanxError: it does not follow what came before, as the gateway is too old to resume a stream.
        """
        news = response.output if isinstance(response, inference_pb2.ChatResponse) else response
        output = self._outputs.setdefault(news.index, _Output())
        if news.first_token_index != len(output.token_ids):
            raise PhalanxError(
                grpc.StatusCode.DATA_LOSS,
                f"the gateway sent token {news.first_token_index} of output {news.index} where token "
                f"{len(output.token_ids)} was due: it is of a version that cannot resume streams",
            )
        output.token_ids += news.token_ids
        output.text_bytes += len(news.text.encode())
        output.resume_token = news.resume_token or output.resume_token
        output.finished = news.finish_reason != inference_pb2.FINISH_REASON_UNSPECIFIED
        return chunk(news)


def _received(index: int, output: _Output) -> inference_pb2.ReceivedOutput:
    if output.finished:
        return inference_pb2.ReceivedOutput(index=index, finished=True)
    return inference_pb2.ReceivedOutput(
        index=index, resume_token=output.resume_token, token_ids=output.token_ids, text_bytes=output.text_bytes
    )
