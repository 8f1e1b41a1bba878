"""A short storm. Longer ones: make chaos FAULTS=1000."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.chaos.cluster import ROOT

_NO_NETWORKS = 77


@pytest.mark.timeout(500)
def test_a_short_storm_changes_no_token_and_leaves_nothing() -> None:
    command = [sys.executable, "-m", "tests.chaos.storm", "--faults", "11", "--seed", "3", "--clients", "3"]
    storm = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=480, check=False)
    if storm.returncode == _NO_NETWORKS:
        pytest.skip(storm.stderr.strip())
    assert storm.returncode == 0, f"{storm.stdout}\n{storm.stderr[-3000:]}"
