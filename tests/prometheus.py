"""A Prometheus that runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.e2e.processes import free_port

_START_S = 60


def program(name: str) -> str:
    """Where a program of Prometheus' is. Skips the test, with the reason, where it is not."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (Debian: prometheus)")
    return found


class Prometheus:
    """Asks one at `port` of this machine."""

    def __init__(self, port: int) -> None:
        self._api = f"http://127.0.0.1:{port}/api/v1"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now. Raises HTTPError when it is refused."""
        return list(self._get("query", query=expression)["result"])

    def rules(self) -> list[dict[str, Any]]:
        """Its rules, with their state and health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[tuple[str, str]]:
        """How each target does, and its last error."""
        return [(target["health"], target["lastError"]) for target in self._get("targets")["activeTargets"]]

    def answers(self) -> bool:
        try:
            self.query("vector(1)")
        except URLError:
            return False
        return True

    def _get(self, what: str, **parameters: str) -> Any:
        with urlopen(f"{self._api}/{what}?{urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]


@contextmanager
def prometheus(
    targets: Sequence[str],
    folder: Path,
    labels: Mapping[str, str] | None = None,
    rules: Mapping[str, Any] | None = None,
) -> Iterator[Prometheus]:
    """One that scrapes `targets` every second, gives them `labels`, and has `rules`."""
    # JSON is YAML.
    rule_file, config, log = (folder / f"prometheus{end}" for end in ("-rules.json", ".json", ".log"))
    rule_file.write_text(json.dumps(rules or {"groups": []}))
    static = {"targets": list(targets), "labels": dict(labels or {})}
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(rule_file)],
                "scrape_configs": [{"job_name": "phalanx", "static_configs": [static]}],
            }
        )
    )
    port = free_port()
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'series'}"]
    with log.open("w") as file:
        server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=file, stderr=file)
    try:
        found = Prometheus(port)
        deadline = time.monotonic() + _START_S
        while not found.answers():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield found
    finally:
        server.terminate()
        server.wait(30)
