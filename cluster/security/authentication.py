"""Asks every call for a bearer token, and tells the services whose it is."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health

from cluster.gateway.caller import CALLER
from cluster.security.tokens import TokenFile
from phalanx.v1 import admin_pb2

log = logging.getLogger(__name__)

_HEALTH = f"/{health.SERVICE_NAME}/"
_ADMIN = f"/{admin_pb2.DESCRIPTOR.services_by_name['Admin'].full_name}/"
_SCHEME = "bearer "


class Authentication(grpc.aio.ServerInterceptor):
    """For public ports. The health service answers everyone, so that probes need no token; it says nothing else."""

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        if not details.method.startswith(_HEALTH):
            shown = _bearer(details)
            holder = None if shown is None else self._tokens.holder(shown)
            if holder is None:
                what = (
                    "no token came with the call" if shown is None else "the token is not one that this gateway knows"
                )
                detail = f"{what}: send `authorization: Bearer TOKEN` as metadata"
                return _refusal(details.method, grpc.StatusCode.UNAUTHENTICATED, detail)
            if details.method.startswith(_ADMIN) and not holder.admin:
                detail = "this token's entry does not say `admin: true`"
                return _refusal(details.method, grpc.StatusCode.PERMISSION_DENIED, detail)
            CALLER.set(holder.caller)
        return await continuation(details)


def _bearer(details: grpc.HandlerCallDetails) -> str | None:
    for name, value in details.invocation_metadata:
        if name == "authorization" and isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME:
            return value[len(_SCHEME) :].strip()
    return None


def _refusal(method: str, code: grpc.StatusCode, detail: str) -> grpc.RpcMethodHandler[Any, Any]:
    log.info("call refused", extra={"method": method, "reason": code.name.lower()})

    async def refuse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(code, detail)

    # Streams, so that no message of a caller who is refused is waited for or read.
    return grpc.stream_stream_rpc_method_handler(refuse)
