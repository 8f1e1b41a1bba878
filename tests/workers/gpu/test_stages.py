"""Stages with Triton's kernels compute what those with torch's do: on a GPU, or interpreted where there is none. There,
nothing is recorded as a graph: a replay runs the same code again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from partitioning.checkpoint import open_checkpoint
from partitioning.devices import parse_topology
from partitioning.plan import Plan
from tests.oracle.references import shape_of
from tests.replicas import config_for, plan_for
from tests.tiny_models import FAMILIES, make_tiny
from tests.tiny_quantised import make_compressed
from tests.workers.native.test_stage import logits, step
from workers.collectives import SoloGroup
from workers.gpu.decode_graphs import Replay
from workers.gpu.kernels import TritonKernels
from workers.model.devices import kernels_for
from workers.model.kernels import Kernels
from workers.model.stage import TorchStage
from workers.model.torch_kernels import TorchKernels
from workers.model.weights import WeightReader
from workers.native.build import OFF, SWITCH
from workers.sampling import Drawn, Sampler
from workers.step_plan import LAST, StepPlan

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Again:
    """Counts what is recorded and what is replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Replay) -> Replay:
        run()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def _stage(plan: Plan, rank: int, kernels: Kernels, device: torch.device) -> TorchStage:
    with open_checkpoint(Path(plan.model_path)) as checkpoint:
        weights = WeightReader(checkpoint, plan, plan.ranks[rank])
        return TorchStage(weights, plan, plan.ranks[rank], config_for(plan), SoloGroup(), device, kernels)


def plain_stage(plan: Plan, rank: int = 0) -> TorchStage:
    return _stage(plan, rank, TorchKernels(plan, plan.ranks[rank], CPU), CPU)


def _triton(plan: Plan, rank: int = 0, record: Again | None = None) -> TorchStage:
    return _stage(plan, rank, TritonKernels(plan, plan.ranks[rank], DEVICE, record), DEVICE)


def _conversation(vocab_size: int, block_size: int) -> Iterator[StepPlan]:
    """Prompts in one chunk and in several, beside decodes. Few tokens: interpreters are slow."""
    rng = np.random.default_rng(5)

    def tokens(count: int) -> list[int]:
        return rng.integers(0, vocab_size, count).tolist()

    yield step(1, block_size, (0, 0, tokens(11)), (1, 0, tokens(1)))
    yield step(2, block_size, (0, 11, tokens(1)), (1, 1, tokens(1)), (2, 0, tokens(8)))
    yield step(3, block_size, (2, 8, tokens(7)), (0, 12, tokens(1)), (1, 2, tokens(3)))
    yield step(4, block_size, (2, 15, tokens(1)), (1, 5, tokens(1)))


def _compare(plan: Plan, tolerance: float, rank: int = 0) -> None:
    """Every step's logits, relative to the largest."""
    plain, triton = plain_stage(plan, rank), _triton(plan, rank)
    for number, planned in enumerate(_conversation(len(plan.ranks[rank].vocab), plan.kv_block_size)):
        expected, found = logits(plain, planned), logits(triton, planned).to(CPU)
        assert (found - expected).abs().max() <= tolerance * expected.abs().max(), f"step {number + 1}"


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_torch(tmp_path: Path, family: str) -> None:
    _compare(plan_for(make_tiny(tmp_path, family, num_hidden_layers=2), kv_block_size=5), 2e-5)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_ranks_that_share_a_kv_head(tmp_path: Path, rank: int) -> None:
    """Each by itself, as if its sums were all; the second rank's two KV heads have one reader and two."""
    plan = plan_for(make_tiny(tmp_path, "qwen2", num_hidden_layers=1, **shape_of(10, 2)), tp=3)
    _compare(plan, 2e-5, rank)


# In an 8-bit cache, sums in another order now and then round a number to the next code.
@pytest.mark.parametrize(("weights", "kv_cache"), [("int8", "auto"), ("int4", "auto"), ("dense", "int8")])
def test_logits_of_quantised_weights_and_caches(tmp_path: Path, weights: str, kv_cache: str) -> None:
    _compare(plan_for(make_tiny(tmp_path, "qwen3", num_hidden_layers=2), weights=weights, kv_cache=kv_cache), 5e-3)


def test_floats_of_eight_bits_give_the_logits_of_what_they_are_expanded_to(tmp_path: Path) -> None:
    """On CPUs; torch's kernels give the same bits."""
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
    sizes = {"hidden_size": 144, "head_dim": 16, "num_hidden_layers": 2}
    folder = make_compressed(tmp_path, weights, "float-quantized", **sizes)
    expanded = plan_for(folder, dtype="float16")
    kept = plan_for(folder, dtype="float16", topology=parse_topology("1xH100"))
    plain, triton = plain_stage(expanded), _triton(kept)
    torchs = _stage(kept, 0, TorchKernels(kept, kept.ranks[0], DEVICE), DEVICE)
    for planned in _conversation(expanded.model.vocab_size, expanded.kv_block_size):
        expected, found = logits(plain, planned), logits(triton, planned).to(CPU)
        assert (found - expected).abs().max() <= 5e-3 * expected.abs().max()
        assert DEVICE.type == "cuda" or torch.equal(logits(torchs, planned), expected)


@pytest.mark.parametrize(
    ("family", "stages", "kv_cache", "tolerance"), [("mistral", 1, "auto", 2e-5), ("qwen2", 2, "int8", 5e-3)]
)
def test_replayed_steps_compute_what_others_do(
    tmp_path: Path, family: str, stages: int, kv_cache: str, tolerance: float
) -> None:
    plan = plan_for(make_tiny(tmp_path, family, num_hidden_layers=2), pp=stages, kv_block_size=8, kv_cache=kv_cache)
    records = [Again() for _ in range(stages)]
    plain = [plain_stage(plan, rank) for rank in range(stages)]
    replaying = [_triton(plan, rank, record) for rank, record in enumerate(records)]
    rng = np.random.default_rng(3)
    lengths = [6, 2, 14]
    prompts = [rng.integers(0, plan.model.vocab_size, length).tolist() for length in lengths]
    steps = [step(1, 8, *((slot, 0, prompt) for slot, prompt in enumerate(prompts)))]
    for number in range(4):  # the first sequence's block is full, and the third's second
        tokens = rng.integers(0, plan.model.vocab_size, 3).tolist()
        rows = [(slot, length + number, tokens[slot : slot + 1]) for slot, length in enumerate(lengths)]
        steps.append(step(2 + number, 8, *(rows if number % 3 else rows[1:])))
    for planned in steps:
        expected = found = None
        for one, other in zip(plain, replaying, strict=True):
            left = one.run(planned, expected, None)
            right = other.run(planned, None if found is None else found.to(DEVICE), None)
            expected, found = (result.hidden if result.logits is None else result.logits for result in (left, right))
            assert expected is not None
            assert found is not None
            found = found.to(CPU)
            assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    for record in records:  # of two sequences and of four
        assert (record.recorded, record.replayed) == (2, 4)


def test_tokens_that_nobody_knows_yet_are_what_was_drawn_last(tmp_path: Path) -> None:
    """In a step that is replayed, and in one that is not."""
    plan = plan_for(make_tiny(tmp_path, "llama", num_hidden_layers=2))
    known, unknown = _triton(plan), _triton(plan, 0, Again())
    first = step(1, plan.kv_block_size, (0, 0, [1, 2, 3]), (2, 0, [4]))
    for stage in (known, unknown):
        logits(stage, first)
    unknown._batches.last_tokens[:3] = torch.tensor([7, 8, 9])
    decodes = [(0, 3, [7]), (2, 1, [9])], [(0, 3, [LAST]), (2, 1, [LAST])]
    for more in ([], [(1, 0, [5, 6])]):
        told, untold = (step(2, plan.kv_block_size, *rows, *more) for rows in decodes)
        assert torch.equal(logits(unknown, untold), logits(known, told))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="there is no GPU")
def test_a_step_waits_for_none_before_it(tmp_path: Path) -> None:
    """Its tokens are drawn and on their way to host memory while those of others are still being computed."""
    plan = plan_for(make_tiny(tmp_path, "llama", num_hidden_layers=2))
    stage = _triton(plan)
    sampler = Sampler(4, plan.ranks[0].vocab, SoloGroup(), DEVICE, stage.drawing, stage.last_tokens)

    def run(planned: StepPlan) -> Drawn:
        return sampler.sample(logits(stage, planned), *planned.samples())

    prompts = step(1, plan.kv_block_size, (0, 0, [1, 2, 3]), (1, 0, [4]))
    decodes = [step(n, plan.kv_block_size, (0, n + 1, [LAST]), (1, n - 1, [LAST])) for n in range(2, 6)]
    for planned in (prompts, decodes[0]):  # what is built and recorded at the first use may wait
        run(planned).result()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = [run(planned) for planned in (prompts, *decodes)]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(len(one.result().tokens) == 2 for one in drawn)


def test_other_steps_are_not_replayed(tmp_path: Path) -> None:
    plan = plan_for(make_tiny(tmp_path, "llama", num_hidden_layers=2))
    record = Again()
    stage = _triton(plan, 0, record)
    stage.run(step(1, plan.kv_block_size, (0, 0, [1, 2, 3]), (1, 0, [4])), None, None)
    unsampled = step(2, plan.kv_block_size, (0, 3, [5]), (1, 1, [6]))
    unsampled.rows[1, 3] = 0  # in the middle of a prompt
    found = stage.run(unsampled, None, None).logits
    assert found is not None
    assert len(found) == 1
    stage.run(step(3, plan.kv_block_size, (0, 4, [5])), None, None, layers=1)
    two = 2 * plan.model.hidden_size  # numbers of sums that can be replayed
    stage._graphs = TritonKernels(plan, plan.ranks[0], DEVICE, record).graphs(stage._decoder, stage._batches, two)
    stage.run(step(3, plan.kv_block_size, *((slot, 5, [6]) for slot in range(3))), None, None)
    assert record.recorded == 0
    stage.run(step(3, plan.kv_block_size, *((slot, 5, [6]) for slot in range(2))), None, None)
    assert record.recorded == 1


def test_triton_is_for_gpus_and_may_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for(make_tiny(tmp_path, "llama"))
    rank = plan.ranks[0]
    assert isinstance(kernels_for(plan, rank, CPU), TorchKernels)
    if DEVICE.type == "cuda":
        assert isinstance(kernels_for(plan, rank, DEVICE), TritonKernels)
    monkeypatch.setenv(SWITCH, OFF)
    assert isinstance(kernels_for(plan, rank, torch.device("cuda")), TorchKernels)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there is a GPU")
def test_where_triton_has_no_driver_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_for(make_tiny(tmp_path, "llama"))
    assert isinstance(kernels_for(plan, plan.ranks[0], torch.device("cuda")), TorchKernels)
    (record,) = caplog.records
    assert "driver" in record.getMessage()
    assert "pip install triton" in record.getMessage()
