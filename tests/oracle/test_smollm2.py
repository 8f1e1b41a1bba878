"""The real model against transformers, which reads the same GGUF file with its own code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.oracle.references import STEPS, Reference, prompts_of
from tests.replicas import config_for, generate, plan_for, thread_replica
from workers.request import SamplingParams

pytestmark = pytest.mark.smollm2

CHUNK = 48
VOCABULARY = 49152
# "What is the capital of France?" in the model's chat format, without a system turn, and random tokens for length.
QUESTION = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
PROMPTS = [QUESTION, *prompts_of((130, 7), VOCABULARY, seed=21)]
RARE = [(tp, pp) for tp in (1, 2, 3, 4) for pp in (1, 2, 3) if (tp, pp) not in {(2, 1), (3, 2)}]


@pytest.fixture(scope="module")
def expected(smollm2: Path) -> list[tuple[list[int], torch.Tensor]]:
    """Greedy tokens and the logits after the prompt, for each prompt."""
    reference = Reference(smollm2)
    return [(reference.greedy(prompt), reference.logits(prompt)) for prompt in PROMPTS]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("tp", "pp"), [(2, 1), (3, 2), *(pytest.param(*layout, marks=pytest.mark.slow) for layout in RARE)]
)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    smollm2: Path, expected: list[tuple[list[int], torch.Tensor]], tp: int, pp: int
) -> None:
    plan = plan_for(smollm2, tp, pp, max_batch_tokens=CHUNK)
    with thread_replica(plan, config_for(plan, max_batch_tokens=CHUNK)) as replica:
        results = generate(replica, PROMPTS, SamplingParams(max_tokens=STEPS, ignore_eos=True))
        scored = generate(replica, PROMPTS, SamplingParams(max_tokens=1, logprobs=VOCABULARY))
    for (tokens, _), (_, outputs), (greedy, logits) in zip(results, scored, expected, strict=True):
        assert tokens == greedy
        ours = torch.empty(VOCABULARY)
        ids, values = zip(*outputs[0].logprobs[0].top, strict=True)
        ours[torch.tensor(ids)] = torch.tensor(values)
        assert (ours - logits.log_softmax(-1)).abs().max() / logits.abs().max() < 1e-4
