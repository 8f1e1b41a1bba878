"""What each way of keeping weights, keys and values costs in quality: perplexity on a fixed text, and agreement with
float32.

python -m benchmarks.accuracy MODEL [--also CHECKPOINT]... [--only NAME]...

MODEL is kept in float32, bfloat16, 8 and 4 bits (group-wise, made while loading), and each CHECKPOINT as it is (a GGUF
file, or a folder that `phalanx compress` or others have made), with activations in bfloat16; each of the former also
with keys and values in 8 bits ("int8 KV"). The text is `accuracy.txt`, in windows of 256 tokens which each begin anew,
one token of every window in a step. Agreement with float32 is told three times: the mean Kullback-Leibler divergence of
the next token's distribution, in nats; how often the likeliest next token of the text is the same; and how much of a
greedy continuation (64 tokens after the first 64 of each window) is the same up to the first token that differs, since
all that follow differ for that reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from cluster.models import resolve_model
from cluster.text import Tokenizer, load_tokenizer
from partitioning.checkpoint import open_checkpoint
from partitioning.model_spec import CacheType, DType, WeightType
from partitioning.plan import Plan
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.collectives import SoloGroup
from workers.local import local_replica
from workers.model.stage import Stage
from workers.request import EngineConfig, Request, SamplingParams
from workers.runner import make_stage
from workers.step_plan import ADMISSION, Kind, StepPlan

_TEXT = Path(__file__).with_name("accuracy.txt")
WINDOW = 256
PROMPT, NEW = 64, 64
_BLOCK = 16


@dataclass(frozen=True)
class Reading:
    """`loss`: mean negative log-probability of a token, in nats. `likeliest` [tokens - 1, sequences]: the model's own
    choices. `logprobs`: float16 [sequences, vocabulary] for each token but the last."""

    loss: float
    likeliest: Tensor
    logprobs: list[Tensor]

    def divergence(self, base: Reading) -> float:
        """Of this from `base`, in nats a token."""
        total = 0.0
        for own, theirs in zip(self.logprobs, base.logprobs, strict=True):
            theirs = theirs.float()
            total += float((theirs.exp() * (theirs - own.float())).sum(dim=1).mean())
        return total / len(self.logprobs)


@dataclass(frozen=True)
class Way:
    """A way of keeping the weights of a model, and its keys and values."""

    name: str
    model: Path
    dtype: DType
    weights: WeightType
    kv_cache: CacheType = "auto"

    def with_int8_cache(self) -> Way:
        return replace(self, name=f"{self.name}, int8 KV", kv_cache="int8")


def main(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a GGUF file or a known name.")],
    also: Annotated[list[Path] | None, typer.Option(help="Checkpoints to use as they are; may be given again.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="These ways alone, and float32; may be given again.")] = None,
) -> None:
    path = resolve_model(model)
    kept = [
        Way("float32", path, "float32", "dense"),
        Way("bfloat16", path, "bfloat16", "dense"),
        Way("int8", path, "bfloat16", "int8"),
        Way("int4", path, "bfloat16", "int4"),
    ]
    ways = [
        *(own for way in kept for own in (way, way.with_int8_cache())),
        *(Way(file.name, file, "bfloat16", "auto") for file in also or []),
    ]
    ways = [way for way in ways if not only or way.name in ("float32", *only) or way.model != path]
    windows = text_windows(load_tokenizer(path))
    print(f"perplexity over {windows.size - len(windows)} tokens, agreement over {len(windows)} × {NEW}\n")
    print(
        "| weights | perplexity | against float32 | KL divergence | same likeliest token | same continuation |\n"
        "|---|---|---|---|---|---|"
    )
    base: tuple[Reading, list[list[int]]] | None = None
    for way in ways:
        plan = _plan(way, len(windows))
        reading, continued = read(stage_of(plan, len(windows)), windows), _continuations(plan, windows)
        base = base or (reading, continued)
        more = exp(reading.loss - base[0].loss) - 1
        choices = float((reading.likeliest == base[0].likeliest).double().mean())
        agreement = sum(map(agreed, continued, base[1])) / (NEW * len(windows))
        row = (way.name, f"{exp(reading.loss):.3f}", f"{more:+.2%}", f"{reading.divergence(base[0]):.4f}")
        print(f"| {' | '.join(row)} | {choices:.1%} | {agreement:.1%} |", flush=True)


def text_windows(tokenizer: Tokenizer) -> np.ndarray:
    """The text, int32 [windows, tokens]."""
    tokens = tokenizer.encode(_TEXT.read_text(encoding="utf-8"))
    return np.array(tokens[: len(tokens) // WINDOW * WINDOW], dtype=np.int32).reshape(-1, WINDOW)


def _plan(way: Way, sequences: int) -> Plan:
    with open_checkpoint(way.model) as checkpoint:
        spec = checkpoint.spec
    settings = plan_settings(
        spec,
        dtype=way.dtype,
        weights=way.weights,
        kv_cache=way.kv_cache,
        max_model_len=WINDOW,
        kv_block_size=_BLOCK,
        kv_cache_tokens=sequences * WINDOW,
    )
    return make_plan(spec, str(way.model), local_topology(1), settings, tp=1, pp=1)


def read(stage: Stage, windows: np.ndarray) -> Reading:
    """What the model makes of every token but the first of each window.

    windows [sequences, tokens]
    """
    lost, likeliest, logprobs = 0.0, [], []
    for step, next_tokens in zip(_steps(windows), windows.T[1:], strict=True):
        logits = stage.run(step, None, None).logits  # [sequences, vocabulary]
        assert logits is not None
        targets = torch.from_numpy(next_tokens.astype(np.int64))
        lost += float(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum"))
        likeliest.append(logits.argmax(dim=1))
        logprobs.append(logits.log_softmax(dim=1).half())
    return Reading(lost / (windows.size - len(windows)), torch.stack(likeliest), logprobs)


@torch.inference_mode()
def stage_of(plan: Plan, sequences: int) -> Stage:
    """The whole model, as a rank alone would run it, with room for `sequences` windows."""
    torch.set_num_threads(plan.ranks[0].threads)
    config = EngineConfig(max_running=sequences, max_model_len=WINDOW)
    with open_checkpoint(plan.model_path) as checkpoint:
        return make_stage(plan, 0, config, checkpoint, SoloGroup(), torch.device("cpu"), all_native=True)


def _steps(windows: np.ndarray) -> Iterator[StepPlan]:
    """One step for every column of `windows` but the last; each sequence has KV blocks of its own."""
    sequences, blocks = len(windows), WINDOW // _BLOCK
    slots = np.arange(sequences, dtype=np.int32)
    ones = np.ones_like(slots)
    for position in range(WINDOW - 1):
        updates = np.empty((0, 3), dtype=np.int32)
        if position % _BLOCK == 0:
            block = position // _BLOCK
            updates = np.stack([slots, ones * block, slots * blocks + block], axis=1)
        yield StepPlan(
            kind=Kind.RUN,
            step=position,
            admissions=np.empty(0, dtype=ADMISSION),
            rows=np.stack([slots, ones * position, ones, ones], axis=1),
            block_updates=np.ascontiguousarray(updates, dtype=np.int32),
            tokens=np.ascontiguousarray(windows[:, position]),
        )


def _continuations(plan: Plan, windows: np.ndarray) -> list[list[int]]:
    sampling = SamplingParams(max_tokens=NEW, ignore_eos=True)
    prompts = windows[:, :PROMPT].tolist()
    tokens: list[list[int]] = [[] for _ in prompts]
    with local_replica(plan, EngineConfig(max_model_len=WINDOW)) as replica:
        requests = [Request(number, prompt, len(prompt), sampling) for number, prompt in enumerate(prompts)]
        for output in replica.generate(requests):
            tokens[output.key] += output.token_ids
    return tokens


def agreed(own: list[int], base: list[int]) -> int:
    """Tokens before the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(own, base, strict=True)) if a != b), len(own))


if __name__ == "__main__":
    typer.run(main)
