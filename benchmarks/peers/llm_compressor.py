"""llm-compressor's checkpoint of a model, on the same calibration windows: what `phalanx compress` is held against.

python benchmarks/peers/llm_compressor.py FOLDER WINDOWS.json OUT gptq|awq|rtn|w8a8|fp8|sparsegpt|wanda

In an environment of its own (`pip install llmcompressor`), as it pins other versions of transformers. WINDOWS.json is
a list of lists of token ids.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from transformers import AutoModelForCausalLM


def groups(symmetric: bool) -> dict[str, QuantizationScheme]:
    four = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=64)
    return {"group_0": QuantizationScheme(targets=["Linear"], weights=four)}


def main(folder: str, windows: Path, out: str, method: str) -> None:
    torch.set_num_threads(1)
    # What AWQ looks at is pinned for an accelerator, which fails where there is none.
    torch.Tensor.pin_memory = lambda tensor, device=None: tensor
    rows = json.loads(windows.read_text())
    recipe = {
        "gptq": lambda: GPTQModifier(config_groups=groups(symmetric=True), ignore=["lm_head"], dampening_frac=0.01),
        "awq": lambda: [
            AWQModifier(),
            QuantizationModifier(config_groups=groups(symmetric=False), ignore=["lm_head"]),
        ],
        "rtn": lambda: QuantizationModifier(config_groups=groups(symmetric=True), ignore=["lm_head"]),
        "w8a8": lambda: [
            SmoothQuantModifier(smoothing_strength=0.8),
            GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], dampening_frac=0.01),
        ],
        "fp8": lambda: QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"]),
        "sparsegpt": lambda: SparseGPTModifier(sparsity=0.5, mask_structure="2:4", ignore=["re:.*lm_head"]),
        "wanda": lambda: WandaPruningModifier(sparsity=0.5, mask_structure="0:0", ignore=["re:.*lm_head"]),
    }[method]()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    dataset = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    oneshot(
        model=model,
        dataset=dataset,
        recipe=recipe,
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]),
    )
    model.save_pretrained(out, save_compressed=True)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])
