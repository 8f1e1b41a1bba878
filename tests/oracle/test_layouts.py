"""Every family in every layout against transformers, on tiny models that no layout divides evenly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from partitioning.plan import Plan
from tests.oracle.references import CUT_GROUPS, STEPS, Reference, prompts_of, shape_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_models import FAMILIES, make_tiny
from workers.parallel import ParallelContext
from workers.request import SamplingParams

CHUNK = 16  # tokens a step: the long prompts take several, beside the decodes of the short ones
LENGTHS = (5, 41, 1, 33)

USUAL = ((1, 1), (2, 1), (4, 1), (1, 3), (2, 2))
RARE = ((3, 1), (1, 2), (3, 2), (4, 2), (2, 3), (3, 3), (4, 3))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Reference]]:
    folder = tmp_path_factory.mktemp("models")
    paths = {family: make_tiny(folder / family, family) for family in FAMILIES}
    return {family: (path, Reference(path)) for family, path in paths.items()}


def layouts() -> list[object]:
    usual = [pytest.param(*layout, id="tp{}-pp{}".format(*layout)) for layout in USUAL]
    rare = [pytest.param(*layout, id="tp{}-pp{}".format(*layout), marks=pytest.mark.slow) for layout in RARE]
    return [*usual, *rare]


@pytest.mark.parametrize(("tp", "pp"), layouts())
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    models: dict[str, tuple[Path, Reference]], family: str, tp: int, pp: int
) -> None:
    path, reference = models[family]
    prompts = prompts_of(LENGTHS, reference.vocab_size)
    plan = plan_for(path, tp, pp, max_batch_tokens=CHUNK)
    every = SamplingParams(max_tokens=1, logprobs=reference.vocab_size)
    with thread_replica(plan, config_for(plan, max_batch_tokens=CHUNK)) as replica:
        together = generate(replica, prompts, SamplingParams(max_tokens=STEPS, ignore_eos=True))
        scored = generate(replica, prompts, every)
    for prompt, (tokens, _), (_, outputs) in zip(prompts, together, scored, strict=True):
        assert tokens == reference.greedy(prompt)
        logits = reference.logits(prompt)
        ours = torch.empty(reference.vocab_size)
        for token, logprob in outputs[0].logprobs[0].top:
            ours[token] = logprob
        error = (ours - logits.log_softmax(-1)).abs().max() / logits.abs().max()
        assert error < 1e-4


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"num_attention_heads": 2, "num_key_value_heads": 1}, id="more-ranks-than-query-heads"),
        pytest.param(
            {"hidden_size": 75, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 10},
            id="no-groups-odd-heads",
        ),
        pytest.param({"num_hidden_layers": 2, "vocab_size": 301, "intermediate_size": 37}, id="odd-sizes"),
    ],
)
def test_shapes_that_no_rank_count_divides(tmp_path: Path, overrides: dict[str, int]) -> None:
    path = make_tiny(tmp_path, "llama", **overrides)
    reference = Reference(path)
    prompts = prompts_of((7, 20), reference.vocab_size)
    plan = plan_for(path, tp=3)
    with thread_replica(plan, config_for(plan)) as replica:
        for prompt, (tokens, _) in zip(
            prompts, generate(replica, prompts, SamplingParams(max_tokens=24, ignore_eos=True)), strict=True
        ):
            assert tokens == reference.greedy(prompt, 24)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(("heads", "kv_heads", "tp", "readers"), CUT_GROUPS)
def test_kv_heads_on_both_sides_of_a_cut(
    tmp_path: Path, family: str, heads: int, kv_heads: int, tp: int, readers: list[list[int]]
) -> None:
    path = make_tiny(tmp_path, family, **shape_of(heads, kv_heads))
    reference = Reference(path)
    prompts = prompts_of(LENGTHS, reference.vocab_size)
    plan = plan_for(path, tp, max_batch_tokens=CHUNK)
    assert [rank.readers(heads // kv_heads) for rank in plan.ranks] == readers
    with thread_replica(plan, config_for(plan, max_batch_tokens=CHUNK)) as replica:
        results = generate(replica, prompts, SamplingParams(max_tokens=STEPS, ignore_eos=True))
    for prompt, (tokens, _) in zip(prompts, results, strict=True):
        assert tokens == reference.greedy(prompt)


@pytest.mark.parametrize("hosts", ["aabb", "abaa"])
def test_a_stage_over_two_hosts_gives_the_tokens_of_transformers(
    models: dict[str, tuple[Path, Reference]], hosts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(plan: Plan, rank: int, *others: Any) -> ParallelContext:
        return ParallelContext(plan, rank, *others, host=hosts[rank])

    monkeypatch.setattr("workers.rank.ParallelContext", apart)
    path, reference = models["qwen3"]
    prompts = prompts_of(LENGTHS, reference.vocab_size)
    plan = plan_for(path, tp=4, max_batch_tokens=CHUNK)
    with thread_replica(plan, config_for(plan, max_batch_tokens=CHUNK)) as replica:
        results = generate(replica, prompts, SamplingParams(max_tokens=STEPS, ignore_eos=True))
    for prompt, (tokens, _) in zip(prompts, results, strict=True):
        assert tokens == reference.greedy(prompt)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (3, 1), (1, 2), (2, 2)])
def test_seeded_sampling_is_the_same_in_every_layout_and_company(
    models: dict[str, tuple[Path, Reference]], tp: int, pp: int
) -> None:
    path, reference = models["llama"]
    prompts = prompts_of((3, 9, 30, 17, 25, 6), reference.vocab_size, seed=5)
    common = {"max_tokens": 40, "ignore_eos": True}
    sampling = [
        SamplingParams(temperature=1.0, seed=1, **common),
        SamplingParams(temperature=0.7, top_p=0.9, seed=2, **common),
        SamplingParams(temperature=1.2, top_k=20, seed=2**63 - 1, **common),
        SamplingParams(temperature=0.9, min_p=0.05, frequency_penalty=0.4, seed=4, **common),
        SamplingParams(temperature=0.8, repetition_penalty=1.3, presence_penalty=0.2, seed=5, **common),
        SamplingParams(**common),
    ]
    whole = plan_for(path)
    with thread_replica(whole, config_for(whole)) as replica:
        alone = [generate(replica, [prompt], s)[0][0] for prompt, s in zip(prompts, sampling, strict=True)]
    plan = plan_for(path, tp, pp, max_batch_tokens=CHUNK)
    with thread_replica(plan, config_for(plan, max_batch_tokens=CHUNK)) as replica:
        together = [tokens for tokens, _ in generate(replica, prompts, *sampling)]
    assert together == alone
