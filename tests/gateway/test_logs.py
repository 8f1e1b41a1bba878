"""The log: lines that a program can read, of every event that an operator asks for, and nothing that clients say."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from phalanx import AsyncClient, InvalidRequest
from tests.replicas import config_for, plan_for
from tests.served import SECRET, served
from workers.observation.log import Lines

_MARKER = "zebra"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def _record(event: str, error: BaseException | None = None, **fields: object) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("workers.test", logging.INFO, __file__, 1, event, (), info)
    vars(record).update(fields)
    return record


def test_a_line_is_an_event_whatever_its_fields_say() -> None:
    record = _record("request finished", request_id='a b\n2026 INFO "forged"', tenant=None, tokens=3, empty="", _ray=1)
    fields = json.loads(Lines("json", {"process": "gateway"}).format(record))
    assert _TIME.fullmatch(fields.pop("time"))
    assert fields == {
        "level": "info",
        "process": "gateway",
        "event": "request finished",
        "request_id": 'a b\n2026 INFO "forged"',
        "tokens": 3,
        "empty": "",
    }
    text = Lines("text", {"process": "gateway"}).format(record)
    assert text.endswith(
        'Z INFO    gateway: request finished request_id="a b\\n2026 INFO \\"forged\\"" tokens=3 empty=""'
    )


def test_an_exception_is_shown_without_its_own_words() -> None:
    try:
        raise KeyError(_MARKER)
    except KeyError as error:
        record = _record("it failed", error)
    fields = json.loads(Lines("json", {"process": "rank"}).format(record))
    text = Lines("text", {"process": "rank"}).format(record)
    assert fields["error"] == "KeyError"
    assert "test_an_exception_is_shown" in fields["stack"]
    assert "error=KeyError\n    " in text
    assert _MARKER not in text + str(fields).replace("raise KeyError(_MARKER)", "")


async def _lines(stderr: asyncio.StreamReader, until: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    while not lines or until not in lines[-1]["event"]:
        lines.append(json.loads(await stderr.readline()))
    return lines


async def test_the_log_tells_what_happens_and_not_what_is_said(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a gateway in a process of its own and of replicas in this one, at the level that says most."""
    # Ours alone: gRPC's log of a server that is being freed names that server, and a record that is kept outlives it.
    for name in ("cluster", "phalanx", "workers"):
        caplog.set_level(logging.DEBUG, logger=name)
    plan = plan_for(model)
    async with served(plan, config_for(plan), replicas=2, step_s=0.004) as cluster:
        command = ["gateway", "--registry", cluster.registry_address, "--listen", "127.0.0.1:0"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cluster.cli", *command, "--log-format", "json", "--log-level", "debug"),
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PHALANX_REGISTRY_SECRET": SECRET},
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(60):
                lines = await _lines(process.stderr, "replica connected")
                lines += await _lines(process.stderr, "replica connected")
                listening = next(line["event"] for line in lines if "listening" in line["event"])
                address = re.search(r"[\d.]+:\d+", listening)
                assert address is not None
                answers = await _ask(address[0])
                process.send_signal(signal.SIGTERM)
                lines += await _lines(process.stderr, "stopped")
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
    assert {line["process"] for line in lines} == {"gateway"}
    ended = {line["request_id"]: line for line in lines if line["event"].startswith("request ")}
    assert [ended[f"r{number}"]["event"] for number in range(5)] == [
        "request finished",
        "request finished",
        "request refused",
        "request refused",
        "request cancelled",
    ]
    assert (ended["r2"]["reason"], ended["r3"]["reason"]) == ("invalid", "invalid")
    finished = ended["r0"]
    assert finished["finish_reason"] == "length"
    assert finished["completion_tokens"] == 12
    assert 0 < finished["ttft_s"] <= finished["duration_s"]
    assert {"draining", "drained", "model known"} <= {line["event"] for line in lines}
    replicas = [Lines("json", {"process": "rank"}).format(record) for record in caplog.records]
    events = [json.loads(line) for line in replicas]
    assert {(e["event"], e.get("request_id")) for e in events} >= {("sequence ended", "r0"), ("sequence ended", "r4")}
    everything = "\n".join([*map(json.dumps, lines), *replicas])
    assert _MARKER not in everything
    for text, ids in answers:
        assert text not in everything
        for three in zip(ids, ids[1:], ids[2:], strict=False):
            assert not re.search(r"\b" + r"\D{1,3}".join(map(str, three)) + r"\b", everything)


async def _ask(address: str) -> list[tuple[str, list[int]]]:
    """Requests r0 to r4; returns the texts and tokens of questions and answers."""
    async with AsyncClient(address) as client:
        question = f"the quick brown {_MARKER}"
        first = await client.generate(question, request_id="r0", max_tokens=12, ignore_eos=True)
        messages = [{"role": "user", "content": question}]
        second = await client.chat(messages, request_id="r1", max_tokens=12, ignore_eos=True)
        with pytest.raises(InvalidRequest):
            await client.generate(question, request_id="r2", temperature=-1.0)
        with pytest.raises(InvalidRequest):
            await client.chat([{"role": "", "content": question}], request_id="r3")
        async with aclosing(client.stream(question, request_id="r4", max_tokens=400, ignore_eos=True)) as chunks:  # type: ignore[type-var]
            async for _ in chunks:
                break
        ids = await client.tokenize(question)
        await asyncio.sleep(0.5)
        return [(question, ids), (first.text, first.token_ids), (second.text, second.token_ids)]
