"""Text that a teacher writes for its student: what the student will be asked to guess."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from cluster.text import Tokenizer
from partitioning.checkpoint import open_checkpoint
from partitioning.distil.settings import DistilError
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.local import LocalReplica, local_replica
from workers.request import EngineConfig, Request, SamplingParams

_TEMPERATURE, _TOP_P = 0.8, 0.95
_TOGETHER = 64

# Called with an iterable of finished texts and how many there will be: a progress bar.
Progress = Callable[[Iterable[int], int], Iterable[int]]


def opening(tokenizer: Tokenizer | None, begin: int | None) -> list[int]:
    """A prompt that leaves the subject to the model: for one with a chat template the start of a user's message, after
    which it writes question and answer (Xu et al., "Magpie", 2024), otherwise the token that begins a text."""
    if tokenizer is None or not tokenizer.has_chat_template:
        return [0 if begin is None else begin]
    both = [tokenizer.chat_prompt([{"role": "user", "content": text}]) for text in ("a", "Z")]
    different = next(i for i, (one, other) in enumerate(zip(*both, strict=False)) if one != other)
    return both[0][:different]


def write_texts(
    model: Path, prompts: Sequence[Sequence[int]], length: int, seed: int, threads: int, file: Path, progress: Progress
) -> list[int]:
    """Has `model` continue every prompt to `length` tokens, past the ends of its own turns, and returns all of them.
    `file` gets a line for each that is finished; what it has already is not written again."""
    written = _written(file)
    left = [number for number in range(len(prompts)) if number not in written]
    if left:
        with open_checkpoint(model) as checkpoint:
            spec = checkpoint.spec
        settings = plan_settings(spec, max_model_len=length, kv_cache_tokens=_TOGETHER * (length + 16))
        plan = make_plan(spec, str(model.resolve()), local_topology(1, cores=threads), settings, tp=1, pp=1)
        config = EngineConfig(max_running=_TOGETHER, max_model_len=length, collective_timeout_s=120.0)
        requests = [
            Request(number, prompts[number], len(prompts[number]), _sampling(length, seed + number)) for number in left
        ]
        with local_replica(plan, config) as replica, file.open("a", encoding="utf-8") as lines:
            texts: dict[int, list[int]] = {}
            for number in progress(_finished(replica, requests, texts), len(left)):
                lines.write(json.dumps({"prompt": number, "token_ids": texts[number]}) + "\n")
                lines.flush()
            written |= texts
    return [token for number in range(len(prompts)) for token in written[number]]


def read_prompts(file: Path, tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """The prompts of a .jsonl file as of `read_texts`, to be continued to `length` tokens. Raises DistilError."""
    prompts = _texts(file, tokenizer)
    long = max(map(len, prompts), default=0)
    if not 0 < long < length:
        raise DistilError(
            f"{file} has {len(prompts)} prompts of up to {long} tokens, which the teacher continues to {length}: it "
            "needs at least one, and shorter ones, or a larger --window"
        )
    return prompts


def read_texts(files: Iterable[Path], tokenizer: Tokenizer) -> list[int]:
    """The tokens of UTF-8 files, one after the other. A .jsonl file has an object with "text", "messages" or
    "token_ids" on each line, any other is one text. Raises DistilError, naming file and line."""
    return [token for file in files for text in _texts(file, tokenizer) for token in text]


def _texts(file: Path, tokenizer: Tokenizer) -> list[list[int]]:
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DistilError(f"{file} cannot be read as UTF-8 text ({error}): name another file") from error
    if file.suffix != ".jsonl":
        return [tokenizer.encode(content)]
    lines = enumerate(content.split("\n"), start=1)
    return [_row(line, tokenizer, f"{file}, line {number}") for number, line in lines if line.strip()]


def digest(content: Sequence[int] | Sequence[Sequence[int]]) -> str:
    """Tells one text, or one set of prompts, from another."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _row(line: str, tokenizer: Tokenizer, where: str) -> list[int]:
    try:
        match json.loads(line):
            case {"text": str(text)}:
                return tokenizer.encode(text)
            case {"messages": list(messages)}:
                return tokenizer.chat_prompt(messages)
            case {"token_ids": list(ids)} if all(type(t) is int and 0 <= t < tokenizer.vocab_size for t in ids):
                return ids
    except (ValueError, TypeError, KeyError) as error:
        raise DistilError(f"{where} cannot be used ({error}): correct or remove it") from error
    raise DistilError(f'{where} needs "text", "messages" or "token_ids" of the teacher\'s: correct or remove it')


def _finished(replica: LocalReplica, requests: Sequence[Request], texts: dict[int, list[int]]) -> Iterator[int]:
    """The keys of requests as they finish; `texts` has their tokens."""
    growing = {request.key: list(request.token_ids) for request in requests}
    for output in replica.generate(requests):
        growing[output.key] += output.token_ids
        if output.finish_reason is not None:
            texts[output.key] = growing.pop(output.key)
            yield output.key


def _written(file: Path) -> dict[int, list[int]]:
    if not file.exists():
        return {}
    # What follows the last line break is a line that was cut off.
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    file.write_text(whole and whole + "\n", encoding="utf-8")
    return {row["prompt"]: row["token_ids"] for row in map(json.loads, whole.splitlines())}


def _sampling(length: int, seed: int) -> SamplingParams:
    return SamplingParams(max_tokens=length, temperature=_TEMPERATURE, top_p=_TOP_P, seed=seed, ignore_eos=True)
