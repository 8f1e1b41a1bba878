"""The baseline: Hugging Face transformers in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, StoppingCriteria

from benchmarks.accuracy import Reading
from benchmarks.techniques.scoring import Asked, batches
from benchmarks.workload import Times


class Transformers:
    """A model as transformers computes it, on `threads` threads."""

    def __init__(self, path: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        source = {"gguf_file": path.name} if path.is_file() else {}
        folder = path.parent if path.is_file() else path
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source).eval()
        self._model.generation_config.eos_token_id = None
        self.vocab_size: int = self._model.config.vocab_size

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._model.parameters())

    @torch.inference_mode()
    def reading(self, windows: np.ndarray) -> Reading:
        """windows [sequences, tokens]"""
        logprobs = torch.stack([self._model(torch.from_numpy(one[None]).long()).logits[0] for one in windows], dim=1)
        logprobs = logprobs[:-1].log_softmax(dim=2)  # [tokens - 1, sequences, vocabulary]
        targets = torch.from_numpy(windows.T[1:].astype(np.int64))
        loss = -float(logprobs.gather(2, targets[..., None]).double().mean())
        return Reading(loss, logprobs.argmax(dim=2), [each.half() for each in logprobs])

    @torch.inference_mode()
    def logprobs(self, asked: Sequence[Asked]) -> Iterator[Tensor]:
        """As `scoring.logprobs_of`."""
        for batch in batches(asked):
            longest = max(len(one.tokens) for one in batch)
            # What follows a sequence's end is not seen by its tokens.
            ids = torch.tensor([[*one.tokens, *[0] * (longest - len(one.tokens))] for one in batch])
            hidden = self._model.model(ids).last_hidden_state
            for one, own in zip(batch, hidden, strict=True):
                ends = own[len(one.tokens) - one.samples : len(one.tokens)]
                yield self._model.lm_head(ends).log_softmax(dim=1)

    def generate(
        self, prompts: Sequence[Sequence[int]], tokens: int, temperature: float = 0.0
    ) -> tuple[list[list[int]], Times]:
        """All at once, from prompts of one length."""
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        ids, clock = torch.tensor(prompts), _Clock()
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            pad_token_id=0,
            **drawn,
            stopping_criteria=[clock],
        )
        return made[:, ids.shape[1] :].tolist(), [clock.times] * len(prompts)


class _Clock(StoppingCriteria):
    """Notes when each token came; stops nothing."""

    def __init__(self) -> None:
        self._started = perf_counter()
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(perf_counter() - self._started)
        return torch.zeros(len(input_ids), dtype=torch.bool)
