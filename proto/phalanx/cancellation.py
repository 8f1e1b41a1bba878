"""What grpc.aio loses when a task is cancelled."""

from __future__ import annotations

import asyncio


def raise_if_cancelled() -> None:
    """For loops that call again after an error: when a call ends while its task is cancelled, grpc raises the status of
    the call and the cancellation is lost.

    Raises:
        asyncio.CancelledError: somebody has cancelled this task.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
