"""The workloads in llama.cpp, on a GGUF file. Runs in the environment that install_llama_cpp.py makes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import llama_cpp as llama
import numpy as np

from benchmarks.workload import WORKLOADS, Times, Workload, peer_arguments, run_all

_BATCH_TOKENS = 2048  # in one call at most


@dataclass(frozen=True)
class Row:
    """One token for a sequence; `samples` says that the next one is wanted."""

    token: int
    position: int
    sequence: int
    samples: bool


class Llama:
    """A model with a context that holds the largest workload."""

    def __init__(self, path: str, threads: int) -> None:
        llama.llama_backend_init()
        model = llama.llama_model_default_params()
        model.n_gpu_layers = 0
        self._model = llama.llama_model_load_from_file(path.encode(), model)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot read {path}")
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        context = llama.llama_context_default_params()
        context.n_ctx = max(w.prompts * (w.prompt_tokens + w.output_tokens) for w in WORKLOADS)
        context.n_batch, context.n_ubatch = _BATCH_TOKENS, 512
        context.n_threads = context.n_threads_batch = threads
        context.n_seq_max = max(w.prompts for w in WORKLOADS)
        context.kv_unified = True
        self._context = llama.llama_init_from_model(self._model, context)
        self._batch = llama.llama_batch_init(_BATCH_TOKENS, 0, 1)

    def forget(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)

    def run(self, rows: Sequence[Row]) -> dict[int, int]:
        """The likeliest next token of each sequence that asks for one."""
        batch: Any = self._batch
        batch.n_tokens = len(rows)
        for i, row in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = row.token, row.position, row.samples
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row.sequence
        if status := llama.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp's decode of {len(rows)} tokens failed with status {status}")
        return {row.sequence: self._likeliest(i) for i, row in enumerate(rows) if row.samples}

    def _likeliest(self, row: int) -> int:
        logits = ctypes.cast(llama.llama_get_logits_ith(self._context, row), ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax())


def main() -> None:
    arguments = peer_arguments(__doc__ or "")
    model = Llama(arguments.model, arguments.threads)

    def generate(workload: Workload, prompts: Sequence[Sequence[int]]) -> Times:
        model.forget()
        times: Times = [[] for _ in prompts]
        started = perf_counter()
        rows = [
            Row(token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        tokens: dict[int, int] = {}
        for first in range(0, len(rows), _BATCH_TOKENS):
            new = model.run(rows[first : first + _BATCH_TOKENS])
            _note(times, new, started)
            tokens |= new
        for step in range(workload.output_tokens - 1):
            position = workload.prompt_tokens + step
            tokens = model.run([Row(token, position, sequence, True) for sequence, token in tokens.items()])
            _note(times, tokens, started)
        return times

    run_all(generate, model.vocab_size, arguments)


def _note(times: Times, tokens: dict[int, int], started: float) -> None:
    now = perf_counter() - started
    for sequence in tokens:
        times[sequence].append(now)


if __name__ == "__main__":
    main()
