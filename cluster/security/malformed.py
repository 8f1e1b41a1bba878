"""Bytes that are not the message they should be."""

from __future__ import annotations

import inspect
from contextlib import aclosing
from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]


class MalformedMessages(grpc.aio.ServerInterceptor):
    """Answers bytes that are not the message they should be (say, text that is not UTF-8) with INVALID_ARGUMENT;
    left alone, gRPC calls them an internal error of the server. For methods that take one message."""

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler
        parse = handler.request_deserializer

        async def parsed(data: bytes, context: Context) -> Any:
            try:
                return parse(data)
            except Exception as error:
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"the request of {details.method} cannot be read ({error}): text has to be UTF-8, and the message "
                    "the one that proto/phalanx/v1 defines",
                )

        if handler.response_streaming:

            async def stream(data: bytes, context: Context) -> None:
                responses = handler.unary_stream(await parsed(data, context), context)
                if inspect.isawaitable(responses):  # it writes by itself
                    await responses
                    return
                async with aclosing(responses):
                    async for response in responses:
                        await context.write(response)

            return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)

        async def unary(data: bytes, context: Context) -> Any:
            return await handler.unary_unary(await parsed(data, context), context)

        return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)
