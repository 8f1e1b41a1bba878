"""What Hugging Face transformers makes of a checkpoint: the values every layout is held against."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM

STEPS = 64

# transformers asks for the same header twice, and for the same names once for every module: half of its half minute.
gguf.GGUFReader = cache(gguf.GGUFReader)
gguf.get_tensor_name_map = cache(gguf.get_tensor_name_map)

# Query heads, KV heads, tp, and how many query heads of each rank read each of its KV heads.
CUT_GROUPS = (
    (9, 3, 2, [[3, 2], [1, 3]]),
    (10, 2, 3, [[4], [1, 2], [3]]),
    (14, 2, 3, [[5], [2, 2], [5]]),
    (14, 2, 4, [[4], [3], [4], [3]]),
    (5, 1, 3, [[2], [2], [1]]),
)


def shape_of(heads: int, kv_heads: int) -> dict[str, int]:
    """Configuration of a tiny model of so many heads, also in families whose head_dim is hidden_size / heads."""
    return {"hidden_size": 10 * heads, "head_dim": 10, "num_attention_heads": heads, "num_key_value_heads": kv_heads}


class Reference:
    """A checkpoint, a folder or a GGUF file, in transformers, in float32."""

    def __init__(self, path: Path) -> None:
        source: dict[str, Any] = {"pretrained_model_name_or_path": path}
        if path.is_file():
            source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        self._model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None
        self.vocab_size: int = self._model.config.vocab_size
        self._known: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def greedy(self, prompt: Sequence[int], steps: int = STEPS) -> list[int]:
        key = (tuple(prompt), steps)
        if key not in self._known:
            self._known[key] = self._greedy(prompt, steps)
        return self._known[key]

    def _greedy(self, prompt: Sequence[int], steps: int) -> list[int]:
        out = self._model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=steps,
            do_sample=False,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].tolist()

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[vocabulary] after the last token."""
        return self._model(torch.tensor([list(tokens)])).logits[0, -1]


def prompts_of(lengths: Sequence[int], vocab_size: int, seed: int = 1) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for length in lengths]
