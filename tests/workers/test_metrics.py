"""What a replica tells Prometheus of its work."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import generate_latest

from tests.oracle.references import prompts_of
from tests.replicas import HOST, config_for, generate, plan_for
from tests.scraped import Scraped
from workers.local import LocalReplica
from workers.observation.metrics import RankMetrics
from workers.rank import Rank
from workers.request import SamplingParams
from workers.security.secret import new_secret

_PROMPTS, _TOKENS = (40, 35), 45


def test_a_rank_tells_what_it_has_done(model: Path) -> None:
    plan = plan_for(model, kv_cache_tokens=128, max_model_len=128)
    rank = Rank(plan, 0, config_for(plan, max_model_len=128))
    metrics = RankMetrics(rank, 0)
    assert "phalanx_sequences_running" not in _look(metrics).families
    rank.join(HOST, rank.open_store(HOST), new_secret())
    rank.load()
    replica = LocalReplica(rank.engine, ())
    prompts = prompts_of(_PROMPTS, 307, seed=8)
    sampling = SamplingParams(max_tokens=_TOKENS, ignore_eos=True)
    try:
        generate(replica, prompts, sampling)
        generate(replica, prompts[:1], sampling)
        told, load = _look(metrics), replica.engine.load()
    finally:
        replica.stop()
        rank.close()
    assert told.value("phalanx_sequences_running") == told.value("phalanx_sequences_waiting") == 0
    assert told.value("phalanx_generated_tokens_total") == 3 * _TOKENS
    assert told.value("phalanx_queue_seconds_count") == 3
    assert told.value("phalanx_queue_seconds_bucket", le="+Inf") == 3
    assert told.value("phalanx_preemptions_total") > 0
    assert told.value("phalanx_prefix_cache_queried_tokens_total") == sum(_PROMPTS) + _PROMPTS[0]
    assert told.value("phalanx_prefix_cache_hit_tokens_total") % plan.kv_block_size == 0
    assert told.value("phalanx_kv_blocks", state="used") == 0
    assert told.value("phalanx_kv_blocks", state="cached") > 0
    assert told.sum("phalanx_kv_blocks") == plan.kv_blocks
    for part in ("schedule", "send", "publish", "forward", "sample", "wait", "commit"):
        assert told.value("phalanx_step_seconds_count", part=part) >= load.steps
        assert told.value("phalanx_step_seconds_sum", part=part) > 0
    assert told.value("phalanx_weights_load_seconds", rank="0") > 0
    assert told.value("phalanx_device_memory_bytes", rank="0", kind="resident") > 1 << 20
    assert told.value("phalanx_rank_collective_seconds_total", rank="0") == 0


def _look(metrics: RankMetrics) -> Scraped:
    return Scraped(generate_latest(metrics).decode())
