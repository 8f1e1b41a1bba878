"""The engine's promises: preemption, prefix cache, cancellation, bounds. One rank, real model code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oracle.references import prompts_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_models import make_tiny
from workers.engine import EngineFull
from workers.local import LocalReplica
from workers.request import FinishReason, Output, Request, SamplingParams

GREEDY = SamplingParams(max_tokens=30, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("engine"), "llama")


@pytest.fixture(scope="module")
def roomy(model: Path) -> Iterator[LocalReplica]:
    plan = plan_for(model)
    with thread_replica(plan, config_for(plan)) as replica:
        yield replica


def tokens_alone(replica: LocalReplica, prompts: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
    return [generate(replica, [prompt], sampling)[0][0] for prompt in prompts]


@pytest.mark.parametrize("pp", [1, 2])
def test_sequences_that_lose_their_blocks_come_back_with_the_same_tokens(
    model: Path, roomy: LocalReplica, pp: int
) -> None:
    prompts = prompts_of((40, 35, 30, 20), 307, seed=8)
    sampling = SamplingParams(
        max_tokens=60, ignore_eos=True, temperature=0.8, seed=3, repetition_penalty=1.2, frequency_penalty=0.3
    )
    plan = plan_for(model, pp=pp, kv_cache_tokens=192, max_model_len=128)
    with thread_replica(plan, config_for(plan, max_model_len=128)) as replica:
        results = generate(replica, prompts, sampling)
        load = replica.engine.load()
    assert [tokens for tokens, _ in results] == tokens_alone(roomy, prompts, sampling)
    assert load.free_blocks == load.total_blocks


def test_tokens_wait_for_each_other_except_the_first_and_the_last(model: Path) -> None:
    plan = plan_for(model)
    prompt = tuple(prompts_of((12,), 307, seed=4)[0])
    with thread_replica(plan, config_for(plan, news_interval_s=60.0)) as replica:
        replica.engine.submit(Request(1, prompt, len(prompt), GREEDY))
        handed = [replica._outputs.get(timeout=30) for _ in range(2)]
    assert all(isinstance(news, list) for news in handed)
    assert [sum(len(output.token_ids) for output in news) for news in handed] == [1, 29]  # type: ignore[union-attr]
    assert handed[1][-1].finish_reason is FinishReason.LENGTH  # type: ignore[index]


def test_the_end_of_one_request_does_not_send_what_others_have(model: Path) -> None:
    plan = plan_for(model)
    short, long = (tuple(prompt) for prompt in prompts_of((12, 12), 307, seed=4))
    few = SamplingParams(max_tokens=5, ignore_eos=True)
    with thread_replica(plan, config_for(plan, news_interval_s=60.0)) as replica:
        replica.engine.submit(Request(1, long, len(long), GREEDY))
        replica.engine.submit(Request(2, short, len(short), few))
        handed: list[Counter[int]] = []
        while len(ended := [news[key] for news in handed for key in news if news[key] > 1]) < 2:
            outputs = replica._outputs.get(timeout=30)
            assert isinstance(outputs, list)
            handed.append(Counter(output.key for output in outputs for _ in output.token_ids))
    assert ended == [4, 29]
    assert handed[-2:] == [{2: 4}, {1: 29}]


def test_a_known_prefix_is_not_computed_again_and_changes_nothing(roomy: LocalReplica) -> None:
    prefix, (end_a, end_b) = prompts_of((70,), 307, seed=9)[0], prompts_of((9, 12), 307, seed=10)
    first, _ = generate(roomy, [prefix + end_a], GREEDY)[0]
    again, outputs = generate(roomy, [prefix + end_a], GREEDY)[0]
    assert outputs[0].cached_tokens == 64
    assert outputs[0].prompt_tokens == 79
    assert again == first
    _, outputs = generate(roomy, [prefix + end_b], GREEDY)[0]
    assert outputs[0].cached_tokens == 64


def test_a_resumed_request_continues_with_the_same_tokens(roomy: LocalReplica) -> None:
    prompt = prompts_of((12,), 307, seed=11)[0]
    sampling = SamplingParams(
        max_tokens=30, ignore_eos=True, temperature=1.0, top_p=0.9, seed=6, presence_penalty=0.5, repetition_penalty=1.1
    )
    whole, _ = generate(roomy, [prompt], sampling)[0]
    resumed = Request(0, prompt + whole[:13], len(prompt), sampling)
    outputs = list(roomy.generate([resumed]))
    assert outputs[0].first_index == 13
    assert [token for output in outputs for token in output.token_ids] == whole[13:]


def test_cancelling_frees_the_blocks_and_tells(roomy: LocalReplica) -> None:
    (prompt,) = prompts_of((20,), 307, seed=12)
    stream = roomy.generate([Request(0, prompt, 20, SamplingParams(max_tokens=400, ignore_eos=True))])
    next(stream)
    roomy.engine.cancel(0)
    last = list(stream)[-1]
    assert last.finish_reason is FinishReason.CANCELLED
    generate(roomy, [prompt], SamplingParams(max_tokens=1))  # one more step publishes the load
    assert roomy.engine.load().free_blocks == roomy.engine.load().total_blocks


def finish_of(outputs: list[Output]) -> FinishReason | None:
    return outputs[-1].finish_reason


def test_generation_ends_at_eos_stop_ids_and_lengths(roomy: LocalReplica) -> None:
    (prompt,) = prompts_of((20,), 307, seed=13)
    tokens, outputs = generate(roomy, [prompt], GREEDY)[0]
    assert (len(tokens), finish_of(outputs)) == (30, FinishReason.LENGTH)
    stop = tokens[10]
    stopped, outputs = generate(
        roomy, [prompt], SamplingParams(max_tokens=30, ignore_eos=True, stop_token_ids=(stop,))
    )[0]
    assert stopped == tokens[: tokens.index(stop) + 1]
    assert finish_of(outputs) is FinishReason.STOP
    (long,) = prompts_of((500,), 307, seed=14)
    to_the_end, outputs = generate(roomy, [long], SamplingParams(max_tokens=100, ignore_eos=True))[0]
    assert (len(to_the_end), finish_of(outputs)) == (12, FinishReason.LENGTH)


def test_higher_priority_runs_first(model: Path) -> None:
    plan = plan_for(model)
    prompts = prompts_of((5, 5, 5), 307)
    with thread_replica(plan, config_for(plan, max_running=1)) as replica:
        requests = [Request(key, prompt, 5, GREEDY, priority=key) for key, prompt in enumerate(prompts)]
        order = [o.key for o in replica.generate(requests) if o.finish_reason is not None]
    assert order.index(2) < order.index(1)


def test_requests_that_can_never_run_are_refused(model: Path) -> None:
    plan = plan_for(model, kv_cache_tokens=192, max_model_len=128)
    with thread_replica(plan, config_for(plan, max_waiting=2)) as replica:
        engine = replica.engine
        with pytest.raises(ValueError, match="at least one token"):
            engine.submit(Request(1, [], 0, GREEDY))
        with pytest.raises(ValueError, match="longest sequence is 512"):
            engine.submit(Request(1, [5] * 512, 512, GREEDY))
        with pytest.raises(ValueError, match="do not fit the KV cache"):
            engine.submit(Request(1, [5] * 180, 180, GREEDY))
        with pytest.raises(EngineFull, match="2 requests are waiting"):
            flood(replica)


def flood(replica: LocalReplica) -> None:
    for key in range(1000):
        replica.engine.submit(Request(key, [5] * 100, 100, GREEDY))
