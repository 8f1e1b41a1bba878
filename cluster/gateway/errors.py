"""What goes wrong, as gRPC status codes: in one place, for every call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc

from cluster.gateway.admission import Admission, Draining, Full
from cluster.gateway.allowance import NeverAllowed, OverLimit
from cluster.gateway.generation import Late, NoReplica, QueuesFull, Refused, Shed
from cluster.gateway.record import RequestRecord
from cluster.gateway.requests import InvalidRequest
from cluster.metrics.gateway import GatewayMetrics
from cluster.text import ChatTemplateMissing, TokenizerError, TokenizerMissing

Context = grpc.aio.ServicerContext[Any, Any]


# As metrics and logs call them (see `cluster.metrics.gateway`).
_REASONS: dict[type[Exception], str] = {
    InvalidRequest: "invalid",
    NeverAllowed: "invalid",
    Refused: "invalid",
    TokenizerError: "invalid",
    TokenizerMissing: "no_tokenizer",
    ChatTemplateMissing: "no_tokenizer",
    Full: "gateway_full",
    QueuesFull: "queues_full",
    OverLimit: "over_limit",
    Shed: "objective",
    Late: "deadline",
    Draining: "draining",
    NoReplica: "no_replica",
}


@contextmanager
def _counted(metrics: GatewayMetrics) -> Iterator[None]:
    try:
        yield
    except tuple(_REASONS) as error:
        metrics.refused(_reason(error))
        raise


@contextmanager
def recorded(record: RequestRecord) -> Iterator[RequestRecord]:
    """Has the record end with the call. An error's own words may quote the request, and stay out of it."""
    try:
        yield record
    except Exception as error:
        reason = _reason(error)
        record.ended(reason or type(error).__name__, expected=bool(reason))
        raise
    except BaseException:
        record.ended(None)
        raise
    else:
        record.ended(None)


def _reason(error: Exception) -> str:
    """Empty for what nobody expects."""
    return next((_REASONS[kind] for kind in type(error).__mro__ if kind in _REASONS), "")


@asynccontextmanager
async def statuses(context: Context, admission: Admission, metrics: GatewayMetrics) -> AsyncIterator[None]:
    """Ends the call with the status code of an error raised inside."""
    try:
        with _counted(metrics):
            yield
    except (InvalidRequest, NeverAllowed, Refused) as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except (TokenizerMissing, ChatTemplateMissing) as error:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    except TokenizerError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except (Full, QueuesFull, Shed) as error:
        detail = str(error) or "every replica's queue is full: try again after the time in retry-after-ms"
        hint = (("retry-after-ms", str(admission.retry_after_ms())),)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, detail, hint)
    except OverLimit as error:
        hint = (("retry-after-ms", str(error.retry_after_ms)),)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), hint)
    except Late as error:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
    except (Draining, NoReplica) as error:
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
