"""Sampling over vocabulary shards, held against the full softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from partitioning.plan import Span
from tests.workers.test_collectives import on_every_rank
from workers.collectives import Group, SoloGroup
from workers.native.drawing import NativeDrawing
from workers.native.library import library
from workers.native.team import Team
from workers.request import SamplingParams
from workers.sampling import Sampled, Sampler
from workers.sampling.drawing import Drawing
from workers.sampling.noise import gumbel, token_keys
from workers.sampling.torch_drawing import TorchDrawing
from workers.seeds import row_keys
from workers.step_plan import ADMISSION, Kind, StepPlan, admission

VOCAB = 307


@pytest.fixture(params=["torch", "native"])
def draw(request: pytest.FixtureRequest) -> Callable[..., Sampled]:
    """`drawn` by torch, or by the library of this machine."""
    if request.param == "torch":
        return partial(drawn, lambda *where: TorchDrawing(*where, torch.device("cpu")))
    if (native := library()) is None:
        pytest.skip("no native library")
    return partial(drawn, lambda *where: NativeDrawing(native, Team(native, 1, False), *where))


def drawn(
    drawing: Callable[[Span, int, Group], Drawing],
    logits: Tensor,
    sampling: list[SamplingParams],
    size: int = 1,
    positions: Tensor | None = None,
    seen: tuple[int, ...] = (),
) -> Sampled:
    """One draw a row of `logits` [rows, VOCAB], over `size` shards; `seen` is every row's prompt."""
    rows = len(logits)
    cuts = [VOCAB * rank // size for rank in range(size + 1)]
    where = torch.full((rows,), 5) if positions is None else positions
    plan = StepPlan(
        Kind.RUN,
        1,
        np.array([admission(slot, len(seen), s) for slot, s in enumerate(sampling)], dtype=ADMISSION),
        np.array([(slot, 0, len(seen), 1) for slot in range(rows)], dtype=np.int32),
        np.empty((0, 3), dtype=np.int32),
        np.array(seen * rows, dtype=np.int32),
    )

    def body(group: Group) -> Sampled:
        shard = Span(cuts[group.rank], cuts[group.rank + 1])
        sampler = Sampler(rows, shard, group, torch.device("cpu"), drawing(shard, VOCAB, group))
        sampler.apply(plan)
        return sampler.sample(logits[:, shard.start : shard.stop].clone(), np.arange(rows), where.numpy()).result()

    if size == 1:
        return body(SoloGroup())
    results = on_every_rank(size, body)
    assert all(result.tokens == results[0].tokens for result in results)
    return results[0]


def random_logits(rows: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


FILTERS = {
    "temperature": SamplingParams(temperature=0.8),
    "top-k": SamplingParams(temperature=1.1, top_k=7),
    "top-p": SamplingParams(temperature=1.0, top_p=0.7),
    "min-p": SamplingParams(temperature=1.5, min_p=0.2),
    "all three": SamplingParams(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02),
    "top-p that outgrows the first offer": SamplingParams(temperature=3.0, top_p=0.97),
    "top-k beyond the first offer": SamplingParams(temperature=2.0, top_k=150),
    "top-k beyond the vocabulary": SamplingParams(temperature=1.0, top_k=1000, top_p=0.8),
    "top-p and min-p": SamplingParams(temperature=1.6, top_p=0.9, min_p=0.05),
}


def reference(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """The distribution to draw from, by Hugging Face transformers' own logits processors."""
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    ids = torch.empty(1, 0, dtype=torch.long)
    scores = TemperatureLogitsWarper(sampling.temperature)(ids, logits[None])
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p:
        scores = MinPLogitsWarper(sampling.min_p)(ids, scores)
    return scores.softmax(-1)[0].double()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_filtered_softmax(draw: Callable[..., Sampled], name: str, size: int) -> None:
    sampling = FILTERS[name]
    draws = 8_000
    logits = random_logits(1)
    expected = reference(logits[0], sampling)
    seeded = [SamplingParams(**{**vars(sampling), "seed": 11}) for _ in range(draws)]
    tokens = draw(logits.expand(draws, -1), seeded, size, positions=torch.arange(draws)).tokens
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCAB).double()
    assert counts[expected == 0].sum() == 0, "a token outside the filters was drawn"
    common = expected * draws >= 5  # Pearson's rule for a cell; the rest go into one
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]) * draws
    keep = wanted > 0
    assert chisquare(observed[keep], wanted[keep] * draws / wanted[keep].sum()).pvalue > 1e-3


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_number_of_shards_draws_the_same_tokens(draw: Callable[..., Sampled], name: str, size: int) -> None:
    rows = 200
    logits = random_logits(rows, seed=2)
    sampling = [SamplingParams(**{**vars(FILTERS[name]), "seed": row}) for row in range(rows)]
    whole = draw(logits, sampling)
    assert draw(logits, sampling, size).tokens == whole.tokens
    assert len(set(whole.tokens)) > 5


def test_a_draw_does_not_depend_on_the_other_rows(draw: Callable[..., Sampled]) -> None:
    logits = random_logits(6, seed=3)
    sampling = [*FILTERS.values()][:6]
    together = draw(logits, sampling, 2).tokens
    alone = [draw(logits[row : row + 1], [sampling[row]], 2).tokens for row in range(6)]
    assert [[token] for token in together] == alone


def test_another_seed_or_position_draws_anew(draw: Callable[..., Sampled]) -> None:
    logits = random_logits(1, scale=0.1).expand(100, -1)
    same = [SamplingParams(temperature=1.0, seed=1)] * 100
    assert len(set(draw(logits, same, positions=torch.arange(100)).tokens)) > 50
    seeds = [SamplingParams(temperature=1.0, seed=seed << 40) for seed in range(100)]
    assert len(set(draw(logits, seeds).tokens)) > 50


@pytest.mark.parametrize("size", [1, 2, 4])
def test_greedy_takes_the_lowest_id_of_the_largest(draw: Callable[..., Sampled], size: int) -> None:
    logits = random_logits(20, seed=4)
    logits[3, [17, 120, 300]] = 50.0
    tokens = draw(logits, [SamplingParams()] * 20, size).tokens
    assert tokens == logits.argmax(1).tolist()
    assert tokens[3] == 17


@pytest.mark.parametrize("size", [1, 3])
def test_logprobs_are_those_of_the_whole_softmax_before_temperature_and_penalties(
    draw: Callable[..., Sampled], size: int
) -> None:
    logits = random_logits(3, seed=5)
    sampling = [
        SamplingParams(temperature=2.0, seed=1, repetition_penalty=1.5, logprobs=4),
        SamplingParams(),
        SamplingParams(logprobs=0),
    ]
    sampled = draw(logits, sampling, size, seen=(3, 9))
    expected = logits.log_softmax(-1)
    best = expected.topk(4)
    assert sampled.logprobs.shape == (2, 9)
    torch.testing.assert_close(sampled.logprobs[0, 0], expected[0, sampled.tokens[0]])
    torch.testing.assert_close(sampled.logprobs[1, 0], expected[2, sampled.tokens[2]])
    torch.testing.assert_close(sampled.logprobs[0, 1:5], best.values[0])
    assert sampled.logprobs[0, 5:].long().tolist() == best.indices[0].tolist()


@pytest.mark.parametrize("size", [1, 3])
def test_penalties_push_down_what_was_seen(draw: Callable[..., Sampled], size: int) -> None:
    logits = torch.zeros(3, VOCAB)
    logits[:, 40], logits[:, 200] = 5.0, 4.0
    sampling = [
        SamplingParams(repetition_penalty=2.0),
        SamplingParams(presence_penalty=2.0),  # covers generated tokens only, and 40 is of the prompt
        SamplingParams(),
    ]
    assert draw(logits, sampling, size, seen=(40,)).tokens == [200, 40, 40]


def test_noise_is_gumbel_distributed_and_independent_between_tokens_and_positions() -> None:
    keys = token_keys(torch.arange(2000))
    rows = torch.from_numpy(row_keys(np.full(500, 7, dtype=np.uint64), np.arange(500)))
    noise = gumbel(keys, rows).double()
    uniform = (-(-noise).exp()).exp()  # the Gumbel distribution function
    counts = torch.histc(uniform, bins=100, min=0, max=1)
    assert chisquare(counts).pvalue > 1e-3
    for correlated in (uniform[:, :-1] - 0.5, uniform[:, 1:] - 0.5), (uniform[:-1] - 0.5, uniform[1:] - 0.5):
        correlation = (correlated[0] * correlated[1]).mean() * 12
        assert abs(correlation) < 4 / np.sqrt(correlated[0].numel())
