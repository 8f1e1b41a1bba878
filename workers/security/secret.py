"""Secrets that the processes of a deployment know each other by, and how one is shown with a gRPC call."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

_BYTES = 32
_HEADER = "phalanx-secret"


def new_secret() -> str:
    return secrets.token_hex(_BYTES)


def derived(secret: str, use: str) -> str:
    """The part of a secret that is for one use: who knows it knows nothing of the secret, nor of other parts."""
    return hmac.new(secret.encode(), use.encode(), hashlib.sha256).hexdigest()


def showing(secret: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call to a port that asks for a secret."""
    return ((_HEADER, secret),)


class SecretCheck(grpc.aio.ServerInterceptor):
    """Lets in the calls that show one of `accepted`, and answers others UNAUTHENTICATED with the `remedy`."""

    def __init__(self, accepted: Callable[[], Sequence[str]], remedy: str) -> None:
        self._accepted, self._remedy = accepted, remedy

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        shown = [value for name, value in details.invocation_metadata if name == _HEADER and isinstance(value, str)]
        if len(shown) == 1 and self._accepts(shown[0]):
            return await continuation(details)
        what = "the secret is not that of this deployment" if shown else "no secret came with the call"
        return _refusal(f"{what}: {self._remedy}")

    def _accepts(self, shown: str) -> bool:
        """Takes as long for a secret that is nearly right as for any other."""
        same = [hmac.compare_digest(secret.encode(), shown.encode()) for secret in self._accepted()]
        return any(same)


def _refusal(detail: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, detail)

    # Streams, so that no message of a caller who is refused is waited for or read.
    return grpc.stream_stream_rpc_method_handler(refuse)
