"""What a client sees when the process that computes its answer is killed: Phalanx beside vLLM.

python -m benchmarks.one_fault HF_FOLDER [--vllm PYTHON] [--out FILE.md]

Each server answers the same question twice, greedily and in float32: undisturbed, and with SIGKILL in the middle of it
for a process of the model (one of two ranks of Phalanx; vLLM's engine core). Then it is asked until it answers again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated

import psutil
import typer

from benchmarks.deployment import free_port
from phalanx import Client

_ROOT = Path(__file__).resolve().parent.parent
_PROMPT = "The history of the steam engine begins"
_TOKENS = 1500
_BEFORE = 10  # pieces of text that come before the fault
_START_S, _AGAIN_S, _STOP_S = 600.0, 180.0, 60.0


class Server(ABC):
    """`stream` yields pieces of text as they come; it raises where the client gets an error."""

    name: str

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
            )
        self._log = log

    @abstractmethod
    def stream(self) -> Iterator[str]: ...

    @abstractmethod
    def victim(self) -> int:
        """The process id of one that computes."""

    def wait(self, seconds: float) -> float | None:
        """Seconds until the question is answered; None where it is not within `seconds`."""
        started = monotonic()
        while monotonic() - started < seconds:
            with suppress(Exception):
                if any(self.stream()):
                    return monotonic() - started
            if self._process.poll() is not None:
                return None
            sleep(0.2)
        return None

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Phalanx(Server):
    name = "Phalanx, tp=2"

    def __init__(self, model: Path, log: Path) -> None:
        self._address = f"127.0.0.1:{free_port()}"
        options = ["--tp", "2", "--dtype", "float32", "--listen", self._address]
        super().__init__([sys.executable, "-m", "cluster.cli", "serve", str(model), *options], log)

    def stream(self) -> Iterator[str]:
        with Client(self._address) as client:
            for chunk in client.stream(_PROMPT, max_tokens=_TOKENS, ignore_eos=True):
                yield chunk.text

    def victim(self) -> int:
        with Client(self._address) as client:
            return int(client.cluster().replicas[0].replica.ranks[1].pid)


class Vllm(Server):
    name = "vLLM, CPU build"

    def __init__(self, python: Path, model: Path, log: Path) -> None:
        self._model = str(model)
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/v1/completions"
        options = ["--dtype", "float32", "--max-model-len", "2048", "--host", "127.0.0.1", "--port", str(port)]
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", self._model, *options]
        super().__init__(command, log, VLLM_CPU_OMP_THREADS_BIND="0-1", VLLM_CPU_KVCACHE_SPACE="1")

    def stream(self) -> Iterator[str]:
        question = {
            "model": self._model,
            "prompt": _PROMPT,
            "max_tokens": _TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url, json.dumps(question).encode(), headers)
        with urllib.request.urlopen(request, timeout=_AGAIN_S) as answer:
            for line in answer:
                data = line.decode().removeprefix("data: ").strip()
                if data == "[DONE]":
                    return
                if data:
                    message = json.loads(data)
                    if "error" in message:
                        raise RuntimeError(message["error"]["message"])
                    yield message["choices"][0]["text"]
        raise RuntimeError("the connection was closed")

    def victim(self) -> int:
        return next(child.pid for child in self.children() if "EngineCore" in " ".join(child.cmdline()))


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        if server.wait(_START_S) is None:
            raise RuntimeError(f"{server.name} did not start")
        yield server
    finally:
        server.stop()


def _row(server: Server) -> str:
    """What became of the answer, as a row of the table."""
    expected = "".join(server.stream())
    victim, got, pieces, pause = server.victim(), "", 0, 0.0
    last = monotonic()
    end = "ends as usual"
    try:
        for piece in server.stream():
            now = monotonic()
            got, pieces, pause, last = got + piece, pieces + 1, max(pause, now - last), now
            if pieces == _BEFORE:
                os.kill(victim, signal.SIGKILL)
    except Exception as error:
        end = f"ends with an error: {' '.join(str(error).split())[:90]}"
    if pieces < _BEFORE:
        raise RuntimeError(f"{server.name} had answered in {pieces} pieces before its process could be killed")
    same = "the same text" if got == expected else f"{len(got) / len(expected):.0%} of the text"
    again = server.wait(_AGAIN_S)
    answered = "never: the server has ended" if again is None else f"{again:.1f} s"
    return f"| {server.name} | {end} | {same} | {pause:.1f} | {answered} |"


def main(
    model: Annotated[Path, typer.Argument(metavar="HF_FOLDER")],
    vllm: Annotated[Path | None, typer.Option(help="The Python of vLLM's environment.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the table.")] = None,
) -> None:
    lines = [
        "| server | the stream whose process was killed | it had | longest pause, s | it answers again after |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with _running(Phalanx(model, log)) as server:
            lines.append(_row(server))
        if vllm is not None:
            with _running(Vllm(vllm, model, log)) as server:
                lines.append(_row(server))
    text = "\n".join(lines)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
