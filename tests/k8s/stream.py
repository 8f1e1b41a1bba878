"""A stream through the headless service, by a client on a machine of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.chaos.network import Machine
from tests.k8s.host_container import ROOT
from tests.k8s.release import Release

_CLIENT = """
import json, sys
from phalanx import Client, Tls
tokens, token, ca = int(sys.argv[2]), sys.argv[3] or None, sys.argv[4]
with Client(sys.argv[1], timeout=400, token=token, tls=Tls(ca=ca) if ca else None) as client:
    options = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.8, "seed": 5}
    for chunk in client.stream("Once upon a time", **options):
        print(json.dumps(list(chunk.token_ids)), flush=True)
"""


class Stream:
    """Shows a `token`, if given, and trusts the authority of the file `ca`."""

    def __init__(
        self, release: Release, machine: Machine, folder: Path, tokens: int, token: str = "", ca: Path | None = None
    ) -> None:
        self._release, self._log = release, folder / f"stream-{time.monotonic_ns()}.log"
        names = f'mount --bind {release.hosts} /etc/hosts && exec "$@"'
        enter = [*machine.inside, "unshare", "--mount", "sh", "-c", names, "sh"]
        command = [sys.executable, "-c", _CLIENT, "llm-headless.models.svc:50051", str(tokens), token, str(ca or "")]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*enter, *command], stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/proto"}
            )

    def tokens(self) -> list[int]:
        """Those that have come."""
        lines = self._log.read_text().split("\n")[:-1]
        return [token for line in lines if line.startswith("[") for token in json.loads(line)]

    def rest(self) -> list[int]:
        """All of them."""
        error = self.error()
        assert not error, error + self._release.log()
        return self.tokens()

    def error(self) -> str:
        """What the client said when it was not served to the end; empty if it was."""
        self._release.until(lambda: self._process.poll() is not None, 400)
        return self._log.read_text() if self._process.returncode else ""
