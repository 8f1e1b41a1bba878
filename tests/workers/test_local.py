"""A replica of real processes, without Ray."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.oracle.references import Reference, prompts_of
from tests.replicas import config_for, generate, plan_for
from tests.tiny_models import make_tiny
from workers.local import local_replica
from workers.request import Request, SamplingParams

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def rank_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "workers.local" in " ".join(p.cmdline())]


def test_processes_agree_with_transformers_and_end_with_the_replica(tmp_path: Path) -> None:
    path = make_tiny(tmp_path, "qwen3")
    prompts = prompts_of((9, 30), 307)
    plan = plan_for(path, tp=2, pp=2)
    with local_replica(plan, config_for(plan)) as replica:
        assert len(rank_processes()) == 3
        results = generate(replica, prompts, GREEDY)
    reference = Reference(path)
    assert [tokens for tokens, _ in results] == [reference.greedy(prompt, 12) for prompt in prompts]
    assert not rank_processes()


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_a_killed_rank_ends_the_replica_at_once_and_is_named(tmp_path: Path, tp: int, pp: int) -> None:
    path = make_tiny(tmp_path, "llama")
    plan = plan_for(path, tp, pp)
    with local_replica(plan, config_for(plan, collective_timeout_s=300.0)) as replica:
        stream = replica.generate([Request(0, [5] * 8, 8, SamplingParams(max_tokens=490, ignore_eos=True))])
        next(stream)
        os.kill(rank_processes()[0].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"rank 1 ended with exit code -9|waited in vain for rank"):
            list(stream)
    assert not rank_processes()
