"""A Prometheus that runs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.e2e.processes import free_port
from tests.k8s.monitoring import program, written

_START_S = 60


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

    def targets(self) -> dict[str, str]:
        """How each target does, by its address."""
        return {
            target["labels"]["instance"]: f"{target['health']} {target['lastError']}"
            for target in self._get("targets")["activeTargets"]
        }

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
def prometheus(targets: list[str], labels: dict[str, str], rules: dict[str, Any], folder: Path) -> Iterator[Prometheus]:
    """One that scrapes `targets` every second, gives them `labels`, and has `rules`."""
    scraped = {"job_name": "phalanx", "static_configs": [{"targets": targets, "labels": labels}]}
    config = folder / "prometheus.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(written(folder, rules))],
                "scrape_configs": [scraped],
            }
        )
    )
    port = free_port()
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [program("prometheus"), *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
    try:
        found = Prometheus(port)
        deadline = time.monotonic() + _START_S
        while not found.answers():
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, (folder / "prometheus.log").read_text()
            time.sleep(0.2)
        yield found
    finally:
        process.kill()
        process.wait()
