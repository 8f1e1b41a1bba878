"""A model that guesses changes no token, whatever it is, in whatever layout, and whatever happens to the sequences.

Guesses are made whatever they cost here, so that the machine's load decides nothing, but for the tests of the policy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from partitioning.plan import Plan
from tests.oracle.test_speculation import PROMPTS, SAMPLING
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_models import FAMILIES, make_tiny
from workers.native.build import OFF, SWITCH
from workers.native.library import library
from workers.request import EngineLoad, FinishReason, Request, SamplingParams
from workers.speculation.draft_model import DraftModel
from workers.speculation.purse import Purse
from workers.speculation.row_price import RowPrice

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]
PLAIN = SamplingParams(max_tokens=40, ignore_eos=True)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowPrice, "measured", lambda self, sequences: (1.0, 0.001))
    monkeypatch.setattr(Purse, "empty", property(lambda self: False))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("target"), "llama")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same vocabulary, and in nothing else like the model."""
    return make_tiny(tmp_path_factory.mktemp("stranger"), "qwen3", seed=7, num_hidden_layers=1, num_attention_heads=6)


def told(plan: Plan, count: int = 8, **options: object) -> tuple[list[list[int]], EngineLoad]:
    """What the first prompts get at once."""
    with thread_replica(plan, config_for(plan, **options)) as replica:
        results = generate(replica, PROMPTS[:count], *SAMPLING[:count])
        generate(replica, [[5]], SamplingParams(max_tokens=1))  # one more step publishes the load
        load = replica.engine.load()
    assert load.free_blocks == load.total_blocks
    assert load.generated_tokens == sum(len(tokens) for tokens, _ in results) + 1
    return [tokens for tokens, _ in results], load


def by_model(path: Path) -> dict[str, object]:
    return {"speculation": "draft", "draft_model": str(path)}


def by_layers(layers: int) -> dict[str, object]:
    return {"speculation": "early-exit", "draft_layers": layers}


@pytest.fixture(scope="module")
def plain(model: Path) -> list[list[int]]:
    return told(plan_for(model))[0]


def test_a_draft_that_is_the_model_is_always_right(model: Path, plain: list[list[int]]) -> None:
    tokens, load = told(plan_for(model, 2), **by_model(model))
    assert tokens == plain
    assert load.accepted_tokens == load.drafted_tokens > 200


def test_layers_of_the_model_itself_guess_in_its_own_cache(model: Path, plain: list[list[int]]) -> None:
    plan = plan_for(model, kv_cache_tokens=320, max_model_len=160)
    tokens, load = told(plan, max_model_len=160, **by_layers(2))
    assert tokens == plain
    assert 5 < load.accepted_tokens < load.drafted_tokens


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_of_every_architecture_gives_the_tokens_of_plain_decoding(
    family: str, tp: int, pp: int, tmp_path: Path, stranger: Path
) -> None:
    path = make_tiny(tmp_path, family)
    expected, _ = told(plan_for(path))
    plan = plan_for(path, tp, pp)
    for options in (by_model(path), by_model(stranger), by_layers(1), by_layers(2)):
        tokens, load = told(plan, **options)
        assert tokens == expected
        assert load.drafted_tokens > 100
        if options == by_model(path):
            assert load.accepted_tokens >= 0.99 * load.drafted_tokens


@pytest.mark.slow
@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("options", [{}, {"kv_cache": "int8"}], ids=["floats", "int8"])
def test_sequences_that_lose_their_blocks_come_back_with_the_same_tokens(
    model: Path, pp: int, options: dict[str, object]
) -> None:
    plan = plan_for(model, pp=pp, kv_cache_tokens=320, max_model_len=160, **options)
    expected, _ = told(plan, max_model_len=160)
    for draft in (by_model(model), by_layers(2)):
        tokens, load = told(plan, max_model_len=160, **draft)
        assert tokens == expected
        assert load.accepted_tokens > 5


@pytest.mark.slow
def test_without_the_native_library_too(model: Path, plain: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, OFF)
    library.cache_clear()
    try:
        for options in (by_model(model), by_layers(2)):
            tokens, load = told(plan_for(model), **options)
            assert tokens == plain
            assert load.accepted_tokens > 50
    finally:
        library.cache_clear()


@pytest.mark.slow
def test_streams_end_at_stop_tokens_and_lengths_among_right_guesses_and_can_be_resumed(
    model: Path, plain: list[list[int]]
) -> None:
    plan = plan_for(model)
    for options in (by_model(model), by_layers(2)):
        with thread_replica(plan, config_for(plan, **options)) as replica:
            prompt, whole = PROMPTS[1], plain[1]
            for stop in list(dict.fromkeys(whole))[::3]:
                ((tokens, outputs),) = generate(replica, [prompt], replace(SAMPLING[1], stop_token_ids=(stop,)))
                assert tokens == whole[: whole.index(stop) + 1]
                assert outputs[-1].finish_reason is FinishReason.STOP
            for most in range(30, 50, 3):
                ((tokens, _),) = generate(replica, [prompt], replace(SAMPLING[1], max_tokens=most))
                assert tokens == whole[:most]
            for at in (1, 17, 40, 69):
                resumed = Request(0, prompt + whole[:at], len(prompt), SAMPLING[1])
                assert [token for output in replica.generate([resumed]) for token in output.token_ids] == whole[at:]


def test_what_a_draft_has_read_it_need_not_read_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of which the prefix cache has the beginning: the draft model has it too."""
    read: list[int] = []
    run = DraftModel._run
    monkeypatch.setattr(
        DraftModel, "_run", lambda self, rows: (read.append(sum(len(row[2]) for row in rows)), run(self, rows))[1]
    )
    plan = plan_for(model, max_batch_tokens=64)
    prompt = [3 + number % 300 for number in range(200)]
    with thread_replica(plan, config_for(plan, max_batch_tokens=64, **by_model(model))) as replica:
        ((first, _),) = generate(replica, [prompt], PLAIN)
        whole = sum(read)
        assert max(read) == 64, "in pieces that one step has room for"
        read.clear()
        ((second, outputs),) = generate(replica, [prompt], PLAIN)
    assert second == first
    assert outputs[0].cached_tokens > 150
    assert sum(read) < whole - 150


@pytest.fixture
def thrifty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that earn nothing, and a pass that costs a tenth of one."""
    monkeypatch.undo()
    monkeypatch.setattr(RowPrice, "measured", lambda self, sequences: (0.01, 0.001))
    monkeypatch.setattr("workers.speculation.purse._SHARE", 0.0)
    monkeypatch.setattr("workers.speculation.model_speculation.ModelSpeculation._learn_pass", lambda *_: 0.001)


@pytest.mark.usefixtures("thrifty")
def test_a_draft_that_guesses_badly_is_left_alone_and_one_that_guesses_well_is_not(model: Path, stranger: Path) -> None:
    plan = plan_for(model)
    sampling = SamplingParams(max_tokens=400, ignore_eos=True)
    loads = []
    for path in (stranger, model):
        with thread_replica(plan, config_for(plan, **by_model(path))) as replica:
            generate(replica, [PROMPTS[0]], sampling)
            generate(replica, [[5]], SamplingParams(max_tokens=1))
            loads.append(replica.engine.load())
    bad, good = loads
    assert bad.accepted_tokens < 10
    assert bad.drafted_tokens < 40
    assert good.accepted_tokens == good.drafted_tokens > 300
