"""How quick one row is, and what it holds, in a process of its own: python -m benchmarks.techniques.speed JOB

JOB is a row's fields as JSON, with `path`, its checkpoint, and `threads`. Prints one JSON object.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.speculation_texts import EDIT
from benchmarks.techniques.energy import Meters
from benchmarks.techniques.rows import Row
from benchmarks.workload import WORKLOADS, Times, measure, peak_mib
from cluster.text import Tokenizer, load_tokenizer

_MAX_LEN = 2048
_CACHE_TOKENS = 8192
_SHARED, _OWN = 1008, 16  # tokens of prompts that begin alike
_REPEATED = 160  # tokens of an answer that repeats its prompt

# What follows prompts, so many tokens of it, at a temperature.
Generate = Callable[[Sequence[Sequence[int]], int, float], tuple[list[list[int]], Times]]


@dataclass(frozen=True)
class Speed:
    """Tokens a second of one stream (`decode`: drawn at temperature 1 after random tokens; `repeats`: of an answer that
    repeats its prompt) and of 32 at once (`batch`); time to first token of 1,024 tokens (`ttft_s`) and of as many when
    another request had all but 16 of them before (`ttft_again_s`). `joules` for each token of the batch; None where
    none are reported."""

    decode: float
    repeats: float
    batch: float
    ttft_s: float
    ttft_again_s: float
    weight_mb: float
    peak_mib: float
    joules: float | None


def speed_of(row: Row, path: Path, threads: int) -> Speed:
    tokenizer = load_tokenizer(path)
    with ExitStack() as stack:
        generate: Generate
        if row.engine == "transformers":
            from benchmarks.techniques.peer import Transformers  # which other rows' memory should not hold

            model = Transformers(path, threads)
            generate, vocab, weights = model.generate, model.vocab_size, model.weight_bytes
        else:
            from benchmarks.techniques.engine import generate as ours
            from benchmarks.techniques.engine import plan_of, replica_of

            plan = plan_of(row, path, threads, _MAX_LEN, _CACHE_TOKENS)
            replica = stack.enter_context(replica_of(row, plan, _MAX_LEN))
            vocab, weights = plan.model.vocab_size, sum(rank.weight_bytes for rank in plan.ranks)
            generate = partial(ours, replica)

        return _measured(generate, vocab, tokenizer, weights)


def _measured(generate: Generate, vocab: int, tokenizer: Tokenizer, weights: int) -> Speed:
    decode, prefill, batch = WORKLOADS
    meters = Meters()
    rates, joules = {}, None
    generate(decode.token_ids(-1, vocab), 8, 1.0)  # to warm up
    for workload in WORKLOADS:
        prompts = workload.token_ids(0, vocab)
        meters.start()
        # Drawn, as the likeliest text that follows random tokens soon repeats itself.
        _, times = generate(prompts, workload.output_tokens, 1.0)
        used = meters.joules()
        rates[workload.name] = measure(workload, times)
        if workload is batch and used is not None:
            joules = used / (workload.prompts * workload.output_tokens)
    rng = random.Random(0)
    shared, *own = ([rng.randrange(100, vocab) for _ in range(size)] for size in (_SHARED, _OWN, _OWN))
    again = 0.0
    for end in own:
        again = generate([shared + end], 1, 0.0)[1][0][0]
    (answered,) = generate([_asking(tokenizer)], _REPEATED, 0.0)[1]
    return Speed(
        decode=rates[decode.name].tokens_per_s,
        repeats=(_REPEATED - 1) / (answered[-1] - answered[0]),
        batch=rates[batch.name].tokens_per_s,
        ttft_s=rates[prefill.name].ttft_s,
        ttft_again_s=again,
        weight_mb=weights / 1e6,
        peak_mib=peak_mib(),
        joules=joules,
    )


def _asking(tokenizer: Tokenizer) -> list[int]:
    """Code to be written again with one name changed."""
    if tokenizer.has_chat_template:
        return tokenizer.chat_prompt([{"role": "user", "content": EDIT}])
    return tokenizer.encode(EDIT)


def main(job: str) -> None:
    fields = json.loads(job)
    path, threads = Path(fields.pop("path")), fields.pop("threads")
    print(json.dumps(asdict(speed_of(Row(**fields), path, threads))))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
