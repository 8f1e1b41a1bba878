"""`phalanx ask`, `chat` and `status` against a real gateway."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.text import load_tokenizer
from tests.oracle.references import Reference
from tests.replicas import config_for, plan_for
from tests.served import Served, served


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
    assert state["replicas"][0]["connected"] is True


async def test_without_a_gateway_the_remedy_is_named() -> None:
    error = (await _phalanx("ask", "x", "--address", "127.0.0.1:9", code=1)).stderr
    assert error.startswith("Error: no gateway answers at 127.0.0.1:9: is `phalanx serve` running")
    assert "Traceback" not in error
