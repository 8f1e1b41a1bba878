"""The Python client of Phalanx.

    from phalanx import Client

    with Client("127.0.0.1:50051") as client:
        print(client.generate("The capital of France is", max_tokens=16).text)
        for chunk in client.chat_stream([{"role": "user", "content": "Tell me a story."}]):
            print(chunk.text, end="", flush=True)

`AsyncClient` is the same for asyncio. The messages and stubs for other uses are in `phalanx.v1`.
"""

from phalanx.aio import AsyncClient
from phalanx.client import Client
from phalanx.connection import InvalidConnection, Tls
from phalanx.errors import DeadlineExceeded, InvalidRequest, Overloaded, PhalanxError, Unavailable
from phalanx.messages import Chunk, Completion, SamplingOptions

__all__ = [
    "AsyncClient",
    "Chunk",
    "Client",
    "Completion",
    "DeadlineExceeded",
    "InvalidConnection",
    "InvalidRequest",
    "Overloaded",
    "PhalanxError",
    "SamplingOptions",
    "Tls",
    "Unavailable",
]
