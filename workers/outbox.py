"""What a gateway has still to be told."""

from __future__ import annotations

import asyncio

from phalanx.v1 import replica_pb2

_MOST_TOKENS = 1 << 16  # that a gateway may leave unread before it is given up


class Outbox:
    """News for one gateway. What it does not read at once is kept together by sequence, so that it gets one message of
    all, and memory grows with tokens alone. Lives on one event loop."""

    def __init__(self) -> None:
        self._news: dict[int, replica_pb2.SequenceNews] = {}
        self._tokens = 0
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, news: replica_pb2.SequenceNews) -> None:
        """Adds to what is known of a sequence; a gateway that reads nothing for too long is given up."""
        before = self._news.get(news.key)
        if before is None:
            self._news[news.key] = news
        else:
            before.token_ids.extend(news.token_ids)
            before.logprobs.extend(news.logprobs)
            before.end, before.detail = news.end, news.detail
        self._tokens += len(news.token_ids)
        if self._tokens > _MOST_TOKENS:
            self.close()
        self._changed.set()

    def wake(self) -> None:
        """Has `get` return even without news."""
        self._changed.set()

    def close(self) -> None:
        """Nothing more is sent."""
        self._news.clear()
        self._closed = True
        self._changed.set()

    async def get(self) -> list[replica_pb2.SequenceNews] | None:
        """All there are; None when the outbox is closed."""
        await self._changed.wait()
        self._changed.clear()
        if self._closed:
            return None
        news, self._news, self._tokens = list(self._news.values()), {}, 0
        return news
