"""Where the native library cannot be had, torch and Gloo give transformers' tokens too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracle.references import CUT_GROUPS, Reference, prompts_of, shape_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_models import make_tiny
from workers.native.library import library
from workers.request import SamplingParams

pytestmark = pytest.mark.usefixtures("without_native")


@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_greedy_tokens_are_those_of_transformers(tmp_path: Path, family: str, tp: int, pp: int) -> None:
    assert library() is None
    path = make_tiny(tmp_path, family)
    reference = Reference(path)
    prompts = prompts_of((5, 41), reference.vocab_size)
    plan = plan_for(path, tp, pp, max_batch_tokens=16)
    with thread_replica(plan, config_for(plan, max_batch_tokens=16)) as replica:
        results = generate(replica, prompts, SamplingParams(max_tokens=24, ignore_eos=True))
    for prompt, (tokens, _) in zip(prompts, results, strict=True):
        assert tokens == reference.greedy(prompt, 24)


@pytest.mark.parametrize(("heads", "kv_heads", "tp", "readers"), CUT_GROUPS)
def test_kv_heads_on_both_sides_of_a_cut(
    tmp_path: Path, heads: int, kv_heads: int, tp: int, readers: list[list[int]]
) -> None:
    path = make_tiny(tmp_path, "qwen2", **shape_of(heads, kv_heads))
    reference = Reference(path)
    prompts = prompts_of((5, 41), reference.vocab_size)
    plan = plan_for(path, tp, max_batch_tokens=16)
    assert [rank.readers(heads // kv_heads) for rank in plan.ranks] == readers
    with thread_replica(plan, config_for(plan, max_batch_tokens=16)) as replica:
        results = generate(replica, prompts, SamplingParams(max_tokens=24, ignore_eos=True))
    for prompt, (tokens, _) in zip(prompts, results, strict=True):
        assert tokens == reference.greedy(prompt, 24)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantised_weights_work_without_it(tmp_path: Path, weights: str) -> None:
    plan = plan_for(make_tiny(tmp_path, "llama"), tp=2, dtype="float32", weights=weights)
    with thread_replica(plan, config_for(plan)) as replica:
        ((tokens, _),) = generate(replica, [[5, 6, 7]], SamplingParams(max_tokens=12, ignore_eos=True))
    assert len(tokens) == 12
