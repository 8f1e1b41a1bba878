"""The workloads in vLLM's CPU build. Runs in the environment that install_vllm.py makes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from time import perf_counter

from benchmarks.workload import Times, Workload, peer_arguments, run_all


def main() -> None:
    arguments = peer_arguments(__doc__ or "", dtypes=("bfloat16", "float32"))
    # All cores, where vLLM would keep one free; and in this process, whose memory is measured.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{arguments.threads - 1}")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM, SamplingParams

    engine = LLM(arguments.model, dtype=arguments.dtype, max_model_len=2048, enable_prefix_caching=False).llm_engine

    def generate(workload: Workload, prompts: Sequence[Sequence[int]]) -> Times:
        sampling = SamplingParams(max_tokens=workload.output_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        times: Times = [[] for _ in prompts]
        started = perf_counter()
        for number, prompt in enumerate(prompts):
            engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, sampling)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = perf_counter() - started
            for output in outputs:
                own = times[int(output.request_id.partition("-")[0])]
                own += [now] * (len(output.outputs[0].token_ids) - len(own))
        return times

    run_all(generate, engine.model_config.get_vocab_size(), arguments)


if __name__ == "__main__":
    main()
