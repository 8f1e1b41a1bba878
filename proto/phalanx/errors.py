"""What a call can fail with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import grpc


class PhalanxError(Exception):
    """A call that failed; `code` is its gRPC status code."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class InvalidRequest(PhalanxError):
    """The request can never succeed; the message names the field and the remedy."""


class Overloaded(PhalanxError):
    """The cluster's queue is full; `retry_after_s` is when it is worth trying again."""

    retry_after_s: float = 1.0


class Unavailable(PhalanxError):
    """Nothing answers at the address, no replica is ready, or the gateway is shutting down."""


class NoGateway(Unavailable):
    """Nothing answers at any address."""


class DeadlineExceeded(PhalanxError):
    """The call took longer than its timeout."""


_KINDS = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


# What grpc says of a message above the receiver's limit, both in bytes.
_TOO_LARGE = re.compile(r"(SERVER|CLIENT): Received message larger than max \((\d+) vs\. (\d+)\)")
# What grpc says when it has no connection.
_NOBODY = ("failed to connect", "connections to all backends failing", "DNS resolution failed")


def ended_early() -> PhalanxError:
    """The error of a stream that ended well, but before its outputs did."""
    return Unavailable(grpc.StatusCode.UNAVAILABLE, "the gateway ended the stream before its outputs were complete")


def from_rpc(error: Any, addresses: Sequence[str]) -> PhalanxError:
    """The error of a call to one of `addresses` that failed (grpc.RpcError or grpc.aio.AioRpcError)."""
    code, detail = error.code(), error.details() or error.code().name
    if code is grpc.StatusCode.UNAVAILABLE and detail.startswith(_NOBODY):
        where = ", ".join(addresses)
        remedy = "is `phalanx serve` running, and listening there?"
        return NoGateway(code, f"no gateway answers at {where}: {remedy} ({detail})")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (large := _TOO_LARGE.search(detail)):
        receiver, size, most = large.groups()
        if receiver == "CLIENT":
            return PhalanxError(code, f"the answer has {size} bytes, and this client reads up to {most}")
        return InvalidRequest(
            code, f"the request has {size} bytes, and the gateway reads up to {most}: shorten the prompt"
        )
    wrapped = _KINDS.get(code, PhalanxError)(code, detail)
    if isinstance(wrapped, Overloaded):
        for key, value in error.trailing_metadata() or ():
            if key == "retry-after-ms":
                wrapped.retry_after_s = int(value) / 1000
    return wrapped
