"""A rank that waits in a process group says for what."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from partitioning.planner import make_plan
from partitioning.topology import local_topology
from tests.partitioning.specs import model_spec
from workers.parallel import ParallelContext, join_store, open_store
from workers.security.secret import new_secret

HOST = "127.0.0.1"


def test_a_rank_that_stands_still_names_the_collective_that_it_is_in() -> None:
    plan = make_plan(model_spec(), "m", local_topology(2), tp=2, pp=1)
    server, secret = open_store(HOST, 30), new_secret()

    def join(rank: int) -> ParallelContext:
        store = server if rank == 0 else join_store(HOST, server.port, 30)
        # Hosts of their own, so that they meet over Gloo.
        return ParallelContext(plan, rank, store, secret, HOST, torch.device("cpu"), 30, host=str(rank))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(join, range(2))
    first.progress.begin("computing")
    assert first.pulse().unfinished == ""
    waiting = threading.Thread(target=first.stage.all_reduce, args=(torch.ones(3),))
    began = time.time()  # the clock of torch's own record
    waiting.start()
    time.sleep(1.2)
    found = re.search(
        r"computing of step 0, .* in gloo:all_reduce \d+ of stage 0 \(\w+ (\d+\.\d) s ago\)", str(first.pulse())
    )
    assert found
    assert 1.0 <= float(found[1]) <= time.time() - began + 0.1
    first.progress.rest("waiting for a plan")
    assert first.pulse().unfinished == ""  # whoever rests is not asked
    first.progress.begin("computing")
    second.stage.all_reduce(torch.ones(3))
    waiting.join(30)
    time.sleep(1.2)
    assert first.pulse().unfinished == ""
    for context in (first, second):
        context.close()
