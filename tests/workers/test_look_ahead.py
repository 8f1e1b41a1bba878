"""Steps that begin before the tokens of those before them are known. What a GPU would do while the process goes on is
done at once here; the engine is told nothing earlier for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracle.references import Reference, prompts_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_models import make_tiny
from tests.workers.token_replica import Replica, alone
from workers.local import LocalReplica
from workers.request import EngineConfig, FinishReason, Output, SamplingParams
from workers.step import Step
from workers.step_plan import LAST

pytestmark = pytest.mark.usefixtures("without_native")

PROMPTS = prompts_of((5, 41, 12, 23, 8, 30), 307, seed=2)
MIXED = (
    SamplingParams(max_tokens=24, ignore_eos=True),
    SamplingParams(max_tokens=1, ignore_eos=True),
    SamplingParams(max_tokens=30, ignore_eos=True, temperature=0.9, seed=5),
    SamplingParams(max_tokens=17, ignore_eos=True, temperature=1.1, seed=6, logprobs=3),
    SamplingParams(max_tokens=2, ignore_eos=True, logprobs=0),
    SamplingParams(max_tokens=25, ignore_eos=True, temperature=0.7, seed=7),
)
WAITING = (  # for their tokens
    SamplingParams(max_tokens=21, ignore_eos=True, repetition_penalty=1.3, frequency_penalty=0.4),
    SamplingParams(max_tokens=21, ignore_eos=True, temperature=1.0, seed=8, top_k=20, top_p=0.8),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("ahead"), "llama")


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages are taken for those of a device that computes while the process goes on."""
    monkeypatch.setattr("workers.model.stage.asynchronous", lambda device: True)


def _steps(replica: LocalReplica) -> list[Step]:
    """What is scheduled from now on."""
    scheduler = replica.engine._scheduler
    schedule, steps = scheduler.schedule, []

    def noting() -> Step | None:
        if (step := schedule()) is not None:
            steps.append(step)
        return step

    scheduler.schedule = noting  # type: ignore[method-assign]
    return steps


def _run(
    model: Path, sampling: tuple[SamplingParams, ...], tp: int = 1, **options: Any
) -> tuple[list[list[int]], list[Output], list[Step]]:
    """Tokens of each prompt, all outputs, and the steps that it took."""
    config = {"max_batch_tokens": 32, "max_running": 4, "max_model_len": 128} | options
    plan = plan_for(model, tp, kv_cache_tokens=config.pop("kv_cache_tokens", 4096), max_model_len=128)
    with thread_replica(plan, config_for(plan, **config)) as replica:
        steps = _steps(replica)
        results = generate(replica, PROMPTS[: len(sampling)], *sampling)
        load = replica.engine.load()
    assert load.free_blocks == load.total_blocks
    assert load.generated_tokens == sum(len(tokens) for tokens, _ in results)
    return [tokens for tokens, _ in results], [output for _, outputs in results for output in outputs], steps


def _blind(steps: list[Step]) -> int:
    """How many rows were of tokens that nobody knew."""
    return sum(int((step.plan.tokens == LAST).sum()) for step in steps)


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_greedy_tokens_are_those_of_transformers(tmp_path: Path, family: str, tp: int) -> None:
    path = make_tiny(tmp_path, family)
    tokens, _, steps = _run(path, MIXED[:1] * 4, tp)
    reference = Reference(path)
    assert tokens == [reference.greedy(prompt, 24) for prompt in PROMPTS[:4]]
    assert _blind(steps) >= 4 * 20


@pytest.mark.parametrize("sampling", [MIXED, MIXED[:4] + WAITING], ids=["mixed", "some-wait"])
@pytest.mark.parametrize("kv_cache_tokens", [4096, 160])
def test_tokens_and_logprobs_are_those_without_it(
    model: Path, request: pytest.FixtureRequest, sampling: tuple[SamplingParams, ...], kv_cache_tokens: int
) -> None:
    expected, said, steps = _run(model, sampling, kv_cache_tokens=kv_cache_tokens)
    assert not _blind(steps)
    request.getfixturevalue("ahead")
    found, says, steps = _run(model, sampling, kv_cache_tokens=kv_cache_tokens)
    assert found == expected
    assert _blind(steps) > 10

    def logprobs(outputs: list[Output]) -> dict[tuple[int, int], list[float]]:
        return {
            (output.key, output.first_index + number): [one.logprob, *(value for _, value in one.top)]
            for output in outputs
            for number, one in enumerate(output.logprobs)
        }

    before, after = logprobs(said), logprobs(says)
    assert before.keys() == after.keys()
    assert len(before) >= 17
    for place, values in before.items():
        np.testing.assert_allclose(after[place], values, atol=1e-4)


@pytest.mark.usefixtures("ahead")
def test_a_sequence_that_ends_by_its_token_says_no_more(model: Path) -> None:
    """The step after it was in vain, and counts for nothing."""
    (whole, *_), _, _ = _run(model, MIXED[:1])
    stop = next(token for number, token in enumerate(whole) if number > 5 and token not in whole[:number])
    sampling = SamplingParams(max_tokens=24, ignore_eos=True, stop_token_ids=(stop,))
    (tokens,), outputs, steps = _run(model, (sampling,))
    assert tokens == whole[: whole.index(stop) + 1]
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert sum(len(step.sampled) for step in steps) == len(tokens) + 1


@pytest.mark.usefixtures("ahead")
def test_guesses_wait_for_what_they_follow(model: Path) -> None:
    tokens, _, steps = _run(model, MIXED, speculation="ngram")
    assert not _blind(steps)
    assert [len(own) for own in tokens] == [24, 1, 30, 17, 2, 25]


def _ahead(**options: Any) -> Replica:
    return Replica(1, look_ahead=True, **options)


def test_a_step_follows_before_the_tokens_of_the_first_are_known() -> None:
    replica = _ahead()
    replica.add(0, [3, 4, 5], 3)
    first, second = replica.launch(), replica.launch()
    assert first is not None
    assert second is not None
    assert first.plan.tokens.tolist() == [3, 4, 5]
    assert second.plan.tokens.tolist() == [LAST]
    assert second.plan.rows.tolist() == [[0, 3, 1, 1]]
    assert replica.launch() is None
    replica.finish()
    assert replica.launch() is not None
    assert replica.launch() is None, "the third token is the last"
    replica.run_dry()
    assert replica.tokens_of(0) == alone([3, 4, 5], 3)


def test_blocks_are_taken_from_nobody_in_flight() -> None:
    """Two sequences fill the cache; one has to wait until the other has ended."""
    replica = _ahead(num_blocks=6)
    replica.add(0, [1, 2, 3, 4], 14)
    replica.add(1, [5, 6, 7], 12)
    while replica.scheduler.running or replica.scheduler.waiting or replica.in_flight:
        replica.fill()
        assert len(replica.in_flight) in (1, 2)
        replica.finish()
    assert replica.scheduler.measures.preemptions == 1
    assert replica.tokens_of(0) == alone([1, 2, 3, 4], 14)
    assert replica.tokens_of(1) == alone([5, 6, 7], 12)


def test_a_cancelled_sequence_keeps_its_place_until_both_its_steps_have_ended() -> None:
    replica = _ahead(config=EngineConfig(max_running=1, max_batch_tokens=13))
    replica.add(0, [1] * 7, 20)
    replica.add(1, [2, 3], 2)
    replica.advance()
    replica.fill()
    replica.cancel(0)
    for _ in range(2):
        assert replica.launch() is None
        assert replica.scheduler.running == 1
        replica.finish()
    assert replica.scheduler.running == 0
    replica.run_dry()
    assert [output.finish_reason for output in replica.outputs[0]] == [None, FinishReason.CANCELLED]
    assert replica.tokens_of(1) == alone([2, 3], 2)
    assert replica.blocks.free == replica.num_blocks


def test_a_parked_sequence_gets_the_tokens_of_both_its_steps() -> None:
    replica = _ahead()
    replica.add(0, [1, 2], 9)
    replica.advance()
    replica.fill()
    replica.scheduler.park(0)
    replica.run_dry()
    assert replica.tokens_of(0) == alone([1, 2], 3)
    assert replica.blocks.free == replica.num_blocks
    replica.scheduler.unpark(0)
    replica.run_dry()
    assert replica.tokens_of(0) == alone([1, 2], 9)
