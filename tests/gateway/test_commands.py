"""`phalanx ask`, `chat`, `status` and `top` against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema
import pytest

from cluster.gateway.server import Gateway, GatewayConfig
from cluster.status.schema import FILE
from cluster.text import load_tokenizer
from phalanx import AsyncClient
from tests.oracle.references import Reference
from tests.replicas import config_for, plan_for
from tests.served import SECRET, Served, served


@pytest.fixture
async def cluster(model: Path) -> AsyncIterator[Served]:
    plan = plan_for(model, tp=2)
    async with served(plan, config_for(plan)) as running:
        yield running


async def _phalanx(*arguments: str, typed: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    result = await asyncio.to_thread(
        subprocess.run, command, input=typed, capture_output=True, text=True, timeout=60, errors="surrogateescape"
    )
    assert result.returncode == code, result.stderr
    return result


def _answer(model: Path, messages: list[dict[str, str]], count: int) -> str:
    tokenizer = load_tokenizer(model)
    tokens = Reference(model).greedy(tokenizer.chat_prompt(messages), count)
    end = tokens.index(305) if 305 in tokens else count
    return tokenizer.decode(tokens[:end])


async def test_ask_prints_the_answer(cluster: Served, model: Path) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    command = ["ask", "hello", "--system", "be brief", "--max-tokens", "20", "--address", cluster.address]
    assert (await _phalanx(*command)).stdout == _answer(model, messages, 20) + "\n"


async def test_chat_remembers_until_a_new_one(cluster: Served, model: Path) -> None:
    typed = "one\n/new\ntwo\n"
    result = await _phalanx("chat", "--max-tokens", "8", "--address", cluster.address, typed=typed)
    for text in ("one", "two"):
        assert _answer(model, [{"role": "user", "content": text}], 8) in result.stdout


async def test_status_shows_the_plan_and_the_replicas(cluster: Served) -> None:
    shown = (await _phalanx("status", "--address", cluster.address)).stdout
    assert "tp=2 pp=1 replicas=1" in shown
    assert "test: serving, 0 requests at this gateway" in shown
    assert "256 of 256" in shown
    state = json.loads((await _phalanx("status", "--json", "--address", cluster.address)).stdout)
    jsonschema.validate(state, json.loads(FILE.read_text(encoding="utf-8")))
    assert state["version"] == 1
    assert state["replicas"][0]["connected"] is True
    assert [event["kind"] for event in state["events"]] == ["epoch_ready"]


async def test_top_shows_the_cluster_at_work(cluster: Served) -> None:
    async with AsyncClient(cluster.address) as client:
        for _ in range(2):
            await client.generate("a prompt that is long enough for a block", max_tokens=20, ignore_eos=True)
    shown = (await _phalanx("top", "--once", "--interval", "0.1", "--address", cluster.address)).stdout
    assert f"test at {cluster.address}   serving   1 of 1 replicas ready" in shown
    assert "(2 outputs here in 5 minutes)" in shown
    assert re.search(r"used 0 cached [1-9]\d* free \d+", shown)
    assert re.search(r"prefix hits [1-9]\d% of \d+ tokens", shown)
    assert "replica 0 epoch 1 ready" in shown


async def test_top_outlasts_its_gateway_and_leaves_the_terminal_as_it_was(cluster: Served) -> None:
    leader, follower = pty.openpty()
    before = termios.tcgetattr(follower)
    command = [sys.executable, "-m", "cluster.cli", "top", "--interval", "0.2", "--address", cluster.address]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
    screen = b""

    async def sees(text: bytes) -> None:
        nonlocal screen
        async with asyncio.timeout(30):
            while text not in screen:
                screen += await asyncio.to_thread(os.read, leader, 1 << 16)
        screen = b""

    try:
        await sees(b"1 of 1 replicas ready")
        await cluster.gateway.stop()
        await sees(f"{cluster.address} is not reachable, trying again".encode())
        again = Gateway(GatewayConfig(cluster.address, cluster.registry_address, SECRET))
        await again.start()
        await again.ready()
        await sees(b"1 of 1 replicas ready")
        os.write(leader, b"q")
        await sees(b"\x1b[?1049l")  # back from the alternate screen
        assert await asyncio.to_thread(process.wait, 20) == 0
        assert termios.tcgetattr(follower) == before
        await again.stop()
    finally:
        process.kill()
        os.close(leader)
        os.close(follower)


async def test_without_a_gateway_the_remedy_is_named() -> None:
    error = (await _phalanx("ask", "x", "--address", "127.0.0.1:9", code=1)).stderr
    assert error.startswith("Error: no gateway answers at 127.0.0.1:9: is `phalanx serve` running")
    assert "Traceback" not in error
