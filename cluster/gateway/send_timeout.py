"""Ends streams that their clients do not read."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import Any

import grpc

from cluster.gateway.errors import Context


class SendTimeout(grpc.aio.ServerInterceptor):
    """A client may leave a message of a stream unread for `seconds`; then all that its answer holds is given back, and
    the stream ends with DEADLINE_EXCEEDED. gRPC sends that status behind the message that waits, so who begins to read
    after all learns the reason."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming or not handler.response_streaming:
            return handler
        answer = handler.unary_stream

        async def stream(request: Any, context: Context) -> None:
            responses = answer(request, context)
            if asyncio.iscoroutine(responses):  # it writes by itself: the health service's news, of a few bytes
                await responses
                return
            try:
                async with aclosing(responses):
                    async for response in responses:
                        await self._write(context, response)
            except _Unread:
                with suppress(grpc.aio.InternalError):  # the client hung up instead
                    await context.abort(
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                        f"the client has read nothing for {self._seconds:g} s, and this gateway's send_timeout_s is no "
                        "longer: read the stream as it comes, or ask for fewer tokens",
                    )

        return grpc.unary_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)

    async def _write(self, context: Context, response: Any) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await context.write(response)
        except TimeoutError:
            raise _Unread from None


class _Unread(Exception):
    """A message has waited for its client for too long."""
