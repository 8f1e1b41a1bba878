"""Lifelines between processes, without Ray."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.lifecycle.lifeline import Address, Lifelines
from tests.e2e.processes import ROOT
from workers.lifeline import Lifeline
from workers.progress import Progress

_HOST, _SECRET = "127.0.0.1", "0123456789abcdef"

_RANK = """
import sys, time
from workers.lifeline import Lifeline
from workers.progress import Progress
progress = Progress()
progress.step = 7
lifeline = Lifeline("127.0.0.1", sys.argv[1], lambda: progress.pulse(12), 0.05)
print(lifeline.port, flush=True)
for line in sys.stdin:
    if line == "compute\\n":
        progress.begin("computing")
    else:
        lifeline.end(line.strip())
time.sleep(60)
"""


@contextmanager
def _ranks(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _RANK, _SECRET]
    ranks = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def _follow(ranks: list[subprocess.Popen[str]]) -> Lifelines:
    ports = [int(rank.stdout.readline()) for rank in ranks if rank.stdout is not None]
    return Lifelines([Address(_HOST, port) for port in ports], _SECRET, ["here"] * len(ports))


def _tell(rank: subprocess.Popen[str], what: str) -> None:
    assert rank.stdin is not None
    rank.stdin.write(f"{what}\n")
    rank.stdin.flush()


async def test_a_death_is_known_at_once_and_blamed_on_the_dead() -> None:
    with _ranks(3) as ranks:
        lifelines = _follow(ranks)
        lost = asyncio.create_task(lifelines.lost(60))
        await asyncio.sleep(0.3)
        assert not lost.done()
        _tell(ranks[0], "CollectiveStalled: rank 2 did not come")
        ranks[2].kill()
        async with asyncio.timeout(5):
            assert await lost == "rank 2 on here: its process died"
        lifelines.close()


async def test_the_last_word_says_why_a_rank_ended() -> None:
    with _ranks(2) as ranks:
        lifelines = _follow(ranks)
        _tell(ranks[1], "OSError: no room")
        async with asyncio.timeout(5):
            assert await lifelines.lost(60) == "rank 1 on here: OSError: no room"
        assert not lifelines.hung
        lifelines.close()


async def test_who_rests_may_rest_and_who_hangs_is_reported() -> None:
    with _ranks(2) as ranks:
        lifelines = _follow(ranks)
        lost = asyncio.create_task(lifelines.lost(3))
        await asyncio.sleep(3.5)
        assert not lost.done()  # both wait for work
        _tell(ranks[0], "compute")
        os.kill(ranks[1].pid, signal.SIGSTOP)
        async with asyncio.timeout(15):
            report = await lost
        assert report.startswith("no step ended within 3 s")
        assert lifelines.hung
        assert "rank 1 on here (suspect): silent since" in report
        assert "rank 0 on here: computing of step 7, after 12 collectives" in report
        lifelines.close()


async def test_without_the_secret_nothing_is_said() -> None:
    lifeline = Lifeline(_HOST, _SECRET, lambda: Progress().pulse(0), 0.05)
    reader, writer = await asyncio.open_connection(_HOST, lifeline.port)
    writer.write(b"f" * 16 + b"\n")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    lifelines = Lifelines([Address(_HOST, lifeline.port)], "wrong-wrong-wron", ["here"])
    async with asyncio.timeout(5):
        assert "its process died" in await lifelines.lost(60)
    lifelines.close()
