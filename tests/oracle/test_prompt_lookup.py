"""Guesses from the prompt, in a model that repeats it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracle.references import prompts_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from tests.tiny_models import make_tiny
from workers.request import SamplingParams
from workers.speculation.row_price import RowPrice

GREEDY = SamplingParams(max_tokens=70, ignore_eos=True)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_a_text_that_repeats_its_prompt_is_guessed_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tp: int, pp: int
) -> None:
    """Three layers that look back seven tokens each know the last 22 alone, and say after the same ones the same."""
    monkeypatch.setattr(RowPrice, "of", lambda self, sequences: 0.01)  # whatever else the machine does
    path = make_tiny(tmp_path, "mistral")
    plan = plan_for(path, tp, pp)
    (question,) = prompts_of((30,), 307, seed=3)
    with thread_replica(plan, config_for(plan)) as replica:
        ((answer, _),) = generate(replica, [question], GREEDY)
        ((again, _),) = generate(replica, [question + answer + question], GREEDY)
    assert again == answer
    with thread_replica(plan, config_for(plan, speculation="ngram")) as replica:
        ((guessed, outputs),) = generate(replica, [question + answer + question], GREEDY)
        load = replica.engine.load()
    assert guessed == answer
    assert load.accepted_tokens > len(answer) / 2
    assert max(len(output.token_ids) for output in outputs) > 4
