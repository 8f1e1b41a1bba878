"""A replica whose ranks are threads of the test's process: the real ranks and collectives, quick to start."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from partitioning.checkpoint import open_checkpoint
from partitioning.model_spec import DType
from partitioning.plan import Plan
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import Topology, local_topology
from workers.engine import Engine
from workers.local import LocalReplica
from workers.rank import Rank
from workers.request import EngineConfig, FinishReason, Output, Request, SamplingParams
from workers.security.secret import new_secret

HOST = "127.0.0.1"


def plan_for(
    model: Path, tp: int = 1, pp: int = 1, dtype: DType = "float32", topology: Topology | None = None, **options: object
) -> Plan:
    """A plan of a real model for this machine, or for `topology`, with a KV cache of 4,096 tokens unless `options` say
    otherwise."""
    checkpoint = open_checkpoint(model)
    spec = checkpoint.spec
    checkpoint.close()
    asked = {"max_model_len": 512, "max_batch_tokens": 512, "kv_cache_tokens": 4096, **options}
    settings = plan_settings(spec, dtype=dtype, **asked)  # type: ignore[arg-type]
    return make_plan(spec, str(model), topology or local_topology(tp * pp), settings, tp=tp, pp=pp)


def config_for(plan: Plan, **options: object) -> EngineConfig:
    settings = {
        "max_model_len": 512,
        "collective_timeout_s": 30.0,
        "eos_token_ids": plan.model.eos_token_ids,
        **options,
    }
    return EngineConfig(**settings)  # type: ignore[arg-type]


@contextmanager
def rank_threads(plan: Plan, config: EngineConfig) -> Iterator[Engine]:
    """Starts every rank of `plan` in a thread but for the first, whose engine is yielded, to be run by the caller."""
    ranks = [Rank(plan, number, config) for number in range(len(plan.ranks))]
    port = ranks[0].open_store(HOST)
    secret = new_secret()
    failures: list[BaseException] = []

    def follow(rank: Rank) -> None:
        try:
            rank.join(HOST, port, secret)
            rank.load()
            rank.follow()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=follow, args=(rank,), daemon=True) for rank in ranks[1:]]
    for thread in threads:
        thread.start()
    ranks[0].join(HOST, port, secret)
    ranks[0].load()
    try:
        yield ranks[0].engine
    finally:
        for thread in threads:
            thread.join(timeout=30)
        for rank in ranks:
            rank.close()
    assert not failures


@contextmanager
def thread_replica(plan: Plan, config: EngineConfig) -> Iterator[LocalReplica]:
    """A running replica of threads."""
    with rank_threads(plan, config) as engine:
        replica = LocalReplica(engine, ())
        try:
            yield replica
        finally:
            replica.stop()


def generate(
    replica: LocalReplica, prompts: Sequence[Sequence[int]], *sampling: SamplingParams
) -> list[tuple[list[int], list[Output]]]:
    """Runs all prompts at once; for each its tokens and its outputs. One SamplingParams serves all, or one each."""
    each = sampling * len(prompts) if len(sampling) == 1 else sampling
    requests = [
        Request(key, prompt, len(prompt), parameters)
        for key, (prompt, parameters) in enumerate(zip(prompts, each, strict=True))
    ]
    results: list[tuple[list[int], list[Output]]] = [([], []) for _ in prompts]
    for output in replica.generate(requests):
        tokens, outputs = results[output.key]
        assert output.first_index == len(tokens)
        assert output.finish_reason is not FinishReason.CANCELLED
        tokens.extend(output.token_ids)
        outputs.append(output)
    return results
