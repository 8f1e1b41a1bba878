"""With keys and values in 8 bits, greedy tokens depend neither on the layout nor on what becomes of a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from partitioning.plan import Plan
from tests.oracle.references import prompts_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_models import make_tiny
from workers.native.build import OFF, SWITCH
from workers.native.library import library
from workers.request import SamplingParams

GREEDY = SamplingParams(max_tokens=40, ignore_eos=True)
CHUNK = 16  # tokens a step: the long prompts take several, beside the decodes of the short ones
PROMPTS = prompts_of((5, 41, 1, 33), 307)

# Nine heads over three KV heads; heads of ten dimensions without groups; heads of 34 that share one KV head.
SHAPES = {
    "llama": {},
    "10": {"hidden_size": 75, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 10},
    "34": {"hidden_size": 70, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 34},
}


@pytest.fixture(
    params=["llama", "34", *(pytest.param(name, marks=pytest.mark.slow) for name in ("10", "llama in torch"))]
)
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shape, _, engine = request.param.partition(" in ")
    if engine == "torch":
        monkeypatch.setenv(SWITCH, OFF)
    library.cache_clear()
    yield make_tiny(tmp_path, "llama", **SHAPES[shape])
    library.cache_clear()


def tokens(plan: Plan, **options: object) -> list[list[int]]:
    with thread_replica(plan, config_for(plan, max_batch_tokens=CHUNK, **options)) as replica:
        return [made for made, _ in generate(replica, PROMPTS, GREEDY)]


def test_every_layout_has_the_same_tokens(model: Path) -> None:
    whole = tokens(plan_for(model, kv_cache="int8", max_batch_tokens=CHUNK))
    for tp, pp, block_size in ((2, 1, 16), (4, 1, 5), (1, 2, 16), (2, 2, 48)):
        plan = plan_for(model, tp, pp, kv_cache="int8", max_batch_tokens=CHUNK, kv_block_size=block_size)
        assert tokens(plan) == whole, f"tp={tp} pp={pp} block_size={block_size}"


def test_sequences_that_lose_their_blocks_come_back_with_the_same_tokens(model: Path) -> None:
    roomy = plan_for(model, kv_cache="int8", max_batch_tokens=CHUNK)
    tight = plan_for(model, kv_cache="int8", max_batch_tokens=CHUNK, kv_cache_tokens=128, max_model_len=96)
    assert tokens(tight, max_model_len=96) == tokens(roomy)


def test_a_cached_prefix_changes_nothing(model: Path) -> None:
    plan = plan_for(model, kv_cache="int8")
    prompt = prompts_of((79,), 307, seed=9)
    with thread_replica(plan, config_for(plan)) as replica:
        ((first, _),) = generate(replica, prompt, GREEDY)
        ((again, outputs),) = generate(replica, prompt, GREEDY)
    assert outputs[0].cached_tokens == 64
    assert again == first
