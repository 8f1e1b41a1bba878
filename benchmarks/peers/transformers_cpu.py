"""The workloads in Hugging Face transformers (generate, static batch, bfloat16)."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria

from benchmarks.workload import Generate, Times, Workload, peer_arguments, run_all


class _Clock(StoppingCriteria):
    """Notes when each token came; stops nothing."""

    def __init__(self) -> None:
        self.started = perf_counter()
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(perf_counter() - self.started)
        return torch.zeros(len(input_ids), dtype=torch.bool)


def generating(model: Any, **options: object) -> Generate:
    """What continues prompts by `model.generate`, to their full length."""
    model.generation_config.eos_token_id = None

    def generate(workload: Workload, prompts: Sequence[Sequence[int]]) -> Times:
        ids = torch.tensor(prompts, device=model.device)
        clock = _Clock()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=workload.output_tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[clock],
            **options,
        )
        return [clock.times] * workload.prompts

    return generate


def main() -> None:
    arguments = peer_arguments(__doc__ or "")
    torch.set_num_threads(arguments.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16).eval()
    run_all(generating(model), model.config.vocab_size, arguments)


if __name__ == "__main__":
    main()
