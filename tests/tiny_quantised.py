"""Tiny checkpoints in the formats of quantised weights, packed by the formats' own library where it installs, else as
their descriptions say, one code at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny_models import make_tiny

# The inputs of every matrix are a multiple of 32, and of no matrix one of 128.
SIZES: dict[str, Any] = {"hidden_size": 288, "head_dim": 32, "intermediate_size": 160}

Packer = Callable[[str, Tensor], dict[str, Tensor]]


def make_compressed(
    folder: Path, weights: dict[str, Any], kind: str, family: str = "llama", inputs: bool = False, **sizes: Any
) -> Path:
    """`weights` as in compressed-tensors' QuantizationArgs; `kind` is the format, such as pack-quantized; `inputs`:
    activations are in 8 bits, with a scale for each token."""
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    compressor = BaseCompressor.get_value_from_registry(kind)
    args = scheme.weights

    def pack(stem: str, weight: Tensor) -> dict[str, Tensor]:
        group = args.group_size or weight.shape[1]
        grouped = weight.view(len(weight), -1, group)
        if args.strategy == "tensor":
            grouped = weight.view(1, 1, -1)
        low, high = grouped.amin(dim=2).clamp(max=0), grouped.amax(dim=2).clamp(min=0)
        zeros = None
        if args.type == "float":
            scale = grouped.abs().amax(dim=2) / 448
        elif args.symmetric:
            scale = grouped.abs().amax(dim=2) / (2 ** (args.num_bits - 1) - 0.5)
        else:
            scale = (high - low) / (2**args.num_bits - 1)
            zeros = (-(2 ** (args.num_bits - 1)) - (low / scale).round()).to(torch.int8)
        if args.strategy == "tensor":
            scale = scale.view(1)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zeros}
        made = compressor.compress({k: v for k, v in state.items() if v is not None}, scheme)
        weight.copy_(compressor.decompress(made, scheme)["weight"])
        return {f"{stem}.{name}": tensor for name, tensor in made.items()}

    config = {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": json.loads(scheme.weights.model_dump_json()),
                "format": kind,
                **({"input_activations": activations} if inputs else {}),
            }
        },
    }
    return _rewritten(make_tiny(folder, family, **(SIZES | sizes)), config, pack)


def make_gptq(
    folder: Path, bits: int, group: int, *, symmetric: bool, ordered: bool = False, version: int = 1, **sizes: Any
) -> Path:
    """Each group's codes come from the group's own range; with `ordered`, groups are dealt out by a permutation."""

    def pack(stem: str, weight: Tensor) -> dict[str, Tensor]:
        outputs, inputs = weight.shape
        order = torch.arange(inputs) // group
        if ordered:
            order = order[torch.randperm(inputs, generator=torch.Generator().manual_seed(1))]
        codes, scales, zeros = _codes(weight, order, bits, symmetric)
        each, less = 32 // bits, int(version == 1)
        words = torch.zeros(inputs // each, outputs, dtype=torch.int64)
        for place in range(inputs):
            words[place // each] |= codes[:, place].long() << (place % each * bits)
        zero_words = torch.zeros(len(zeros), outputs // each, dtype=torch.int64)
        for output in range(outputs):
            zero_words[:, output // each] |= (zeros[:, output].long() - less) << (output % each * bits)
        return {
            f"{stem}.qweight": _signed(words),
            f"{stem}.qzeros": _signed(zero_words),
            f"{stem}.scales": scales,
            f"{stem}.g_idx": order.int(),
            f"{stem}.bias": torch.zeros(outputs),
        }

    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": ordered,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    return _rewritten(make_tiny(folder, "llama", **(SIZES | sizes)), config, pack)


def make_awq(folder: Path, group: int, **sizes: Any) -> Path:
    def pack(stem: str, weight: Tensor) -> dict[str, Tensor]:
        codes, scales, zeros = _codes(weight, torch.arange(weight.shape[1]) // group, 4, symmetric=False)

        def words(values: Tensor) -> Tensor:  # [rows, outputs] → [rows, outputs / 8]
            packed = torch.zeros(len(values), values.shape[1] // 8, dtype=torch.int64)
            for word in range(packed.shape[1]):
                for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                    packed[:, word] |= values[:, 8 * word + output].long() << (4 * place)
            return _signed(packed)

        return {f"{stem}.qweight": words(codes.T), f"{stem}.qzeros": words(zeros), f"{stem}.scales": scales}

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return _rewritten(make_tiny(folder, "llama", **(SIZES | sizes)), config, pack)


def float_twin(folder: Path) -> Path:
    """The same model with the weights that its codes mean, as plain floats."""
    return folder / "plain"


def _codes(weight: Tensor, order: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [outputs, inputs], scales [groups, outputs] and zero points [groups, outputs]; `weight` becomes what they
    mean."""
    codes = torch.empty_like(weight, dtype=torch.uint8)
    scales, zeros = [], []
    for group in range(int(order.max()) + 1):
        mine = order == group
        part = weight[:, mine]
        low, high = part.amin(dim=1).clamp(max=-1e-3), part.amax(dim=1).clamp(min=1e-3)
        if symmetric:
            scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 0.5)
            zero = torch.full_like(scale, 2 ** (bits - 1))
        else:
            scale = (high - low) / (2**bits - 1)
            zero = (-low / scale).round().clamp(1, 2**bits - 1)
        scale = scale.half().float()
        own = (part / scale[:, None] + zero[:, None]).round().clamp(0, 2**bits - 1)
        weight[:, mine] = (own - zero[:, None]) * scale[:, None]
        codes[:, mine] = own.to(torch.uint8)
        scales.append(scale.half())
        zeros.append(zero)
    return codes, torch.stack(scales), torch.stack(zeros)


def _signed(words: Tensor) -> Tensor:
    return torch.where(words >= 2**31, words - 2**32, words).int().contiguous()


def _rewritten(folder: Path, config: dict[str, Any], pack: Packer) -> Path:
    """Puts packed tensors in the place of every layer's matrices; what `pack` leaves in a matrix is saved beside."""
    tensors = load_file(folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and name.startswith("model.layers."):
            made |= pack(name.removesuffix(".weight"), tensor)
        else:
            made[name] = tensor
    plain = folder / "plain"
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(fields))
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(fields | {"quantization_config": config}))
    save_file({n: t.contiguous() for n, t in made.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
