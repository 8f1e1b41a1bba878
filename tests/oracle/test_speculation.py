"""Speculative decoding gives the tokens of plain decoding, one by one, whatever the layout and whatever happens.

A model of random weights repeats nothing, so guesses here come from who knows what plain decoding gave, and errs now
and then; and they are made whatever a row costs, so that the machine's load decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from partitioning.plan import Plan
from tests.oracle.references import prompts_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_models import make_tiny
from workers.local import LocalReplica
from workers.native.build import OFF, SWITCH
from workers.native.library import library
from workers.request import FinishReason, Output, Request, SamplingParams
from workers.sequence import Sequence
from workers.speculation.row_price import RowPrice

COMMON = {"max_tokens": 70, "ignore_eos": True}
SAMPLING = [
    SamplingParams(**COMMON),
    SamplingParams(**COMMON, temperature=0.8, seed=1),
    SamplingParams(**COMMON, temperature=0.3, top_p=0.7, seed=2),
    SamplingParams(**COMMON, temperature=1.0, top_k=3, seed=3, logprobs=2),
    SamplingParams(**COMMON, logprobs=3),
    SamplingParams(**COMMON, temperature=0.5, repetition_penalty=1.1, frequency_penalty=0.1, seed=5),
    SamplingParams(**COMMON, temperature=1.0, seed=6),
    SamplingParams(**{**COMMON, "max_tokens": 33}),
]
PROMPTS = prompts_of((5, 41, 9, 33, 20, 7, 12, 3), 307, seed=21)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("speculation"), request.param)


Told = list[tuple[list[int], list[Output]]]


def told(plan: Plan, speculation: str, **options: object) -> tuple[Told, int]:
    """What all prompts get at once, and how many guesses were right."""
    with thread_replica(plan, config_for(plan, speculation=speculation, **options)) as replica:
        results = generate(replica, PROMPTS, *SAMPLING)
        generate(replica, [[5]], SamplingParams(max_tokens=1))  # one more step publishes the load
        load = replica.engine.load()
    assert load.free_blocks == load.total_blocks
    assert load.generated_tokens == sum(len(tokens) for tokens, _ in results) + 1
    return results, load.accepted_tokens


def tokens_of(results: Told) -> list[list[int]]:
    return [tokens for tokens, _ in results]


@pytest.fixture(scope="module")
def plain(model: Path) -> Told:
    results, accepted = told(plan_for(model), "off")
    assert accepted == 0
    return results


class Knowing:
    """Guesses what plain decoding gave, but for every fifth token."""

    def __init__(self, results: Told) -> None:
        self._known = {tuple(prompt): whole for prompt, (whole, _) in zip(PROMPTS, results, strict=True)}

    def __call__(self, sequence: Sequence, most: int) -> list[int]:
        prompt_len = sequence.request.prompt_len
        at = len(sequence.tokens) - prompt_len
        right = self._known.get(tuple(sequence.tokens[:prompt_len]), [])[at : at + most]
        return [(token + ((at + number) % 5 == 4)) % 307 for number, token in enumerate(right)]


@pytest.fixture(autouse=True, scope="module")
def eager(plain: Told) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.engine.PromptLookup", lambda: Knowing(plain))
        patch.setattr(RowPrice, "of", lambda self, sequences: 0.01)
        yield


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_every_layout_gives_the_tokens_of_plain_decoding(model: Path, plain: Told, tp: int, pp: int) -> None:
    results, accepted = told(plan_for(model, tp, pp), "ngram")
    assert tokens_of(results) == tokens_of(plain)
    assert accepted > 100


def test_logprobs_are_those_of_plain_decoding(model: Path, plain: Told) -> None:
    results, _ = told(plan_for(model), "ngram")
    for (_, outputs), (_, expected) in zip(results, plain, strict=True):
        ours, theirs = ([entry for output in each for entry in output.logprobs] for each in (outputs, expected))
        assert [[token for token, _ in entry.top] for entry in ours] == [[t for t, _ in entry.top] for entry in theirs]
        assert [entry.logprob for entry in ours] == pytest.approx([entry.logprob for entry in theirs], abs=1e-4)


@pytest.mark.parametrize("pp", [1, 2])
def test_sequences_that_lose_their_blocks_come_back_with_the_same_tokens(model: Path, plain: Told, pp: int) -> None:
    plan = plan_for(model, pp=pp, kv_cache_tokens=320, max_model_len=160)
    results, accepted = told(plan, "ngram", max_model_len=160)
    assert tokens_of(results) == tokens_of(plain)
    assert accepted > 100


def test_keys_and_values_in_8_bits_stay_as_they_are(model: Path) -> None:
    plan = plan_for(model, kv_cache="int8")
    speculative, accepted = told(plan, "ngram")
    assert tokens_of(speculative) == tokens_of(told(plan, "off")[0])
    assert accepted > 100


def test_without_the_native_library_too(model: Path, plain: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, OFF)
    library.cache_clear()
    try:
        results, accepted = told(plan_for(model), "ngram")
    finally:
        library.cache_clear()
    assert tokens_of(results) == tokens_of(plain)
    assert accepted > 100


@pytest.fixture(scope="module")
def guessing(model: Path) -> Iterator[LocalReplica]:
    plan = plan_for(model)
    with thread_replica(plan, config_for(plan, speculation="ngram")) as replica:
        yield replica


def test_a_resumed_stream_goes_on_with_the_same_tokens(guessing: LocalReplica, plain: Told) -> None:
    for number, at in enumerate((1, 20, 37, 44, 50, 60, 69, 30)):
        prompt, whole = PROMPTS[number], plain[number][0]
        resumed = Request(0, prompt + whole[:at], len(prompt), SAMPLING[number])
        assert [token for output in guessing.generate([resumed]) for token in output.token_ids] == whole[at:]


def test_a_stream_ends_at_a_stop_token_among_right_guesses(guessing: LocalReplica, plain: Told) -> None:
    prompt, whole = PROMPTS[0], plain[0][0]
    for stop in dict.fromkeys(whole):
        sampling = replace(SAMPLING[0], stop_token_ids=(stop,))
        ((tokens, outputs),) = generate(guessing, [prompt], sampling)
        assert tokens == whole[: whole.index(stop) + 1]
        assert outputs[-1].finish_reason is FinishReason.STOP


def test_a_stream_ends_at_any_length_among_right_guesses(guessing: LocalReplica, plain: Told) -> None:
    prompt, whole = PROMPTS[0], plain[0][0]
    for most in range(40, 64):
        ((tokens, outputs),) = generate(guessing, [prompt], replace(SAMPLING[0], max_tokens=most))
        assert tokens == whole[:most]
        assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_what_was_guessed_wrong_is_not_in_the_prefix_cache(guessing: LocalReplica, plain: Told) -> None:
    """A prompt that goes on where another stream's guesses lay."""
    for prompt, (whole, _), sampling in zip(PROMPTS, plain, SAMPLING, strict=True):
        generate(guessing, [prompt], sampling)
        if not (sampling.repetition_penalty == 1.0 and sampling.frequency_penalty == 0.0):
            continue
        at = len(whole) - 2
        again = Request(0, prompt + whole[:at], len(prompt), sampling)
        outputs = list(guessing.generate([again]))
        assert [token for output in outputs for token in output.token_ids] == whole[at:]
        assert outputs[0].cached_tokens > 0 or len(prompt) < 16
