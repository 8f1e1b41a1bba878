"""Fewer KV heads, MLP columns and layers: which to keep, and what remains of the weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from partitioning.compress.recipe import CompressionError, Structure
from partitioning.model_spec import ModelSpec


def smaller(spec: ModelSpec, structure: Structure | None) -> ModelSpec:
    """The shape that is left. Raises CompressionError where it would be larger."""
    if structure is None:
        return spec
    kv_heads = structure.kv_heads or spec.num_kv_heads
    layers, columns = structure.layers or spec.num_layers, structure.mlp_columns or spec.intermediate_size
    for name, wanted, there in [
        ("layers", layers, spec.num_layers),
        ("kv_heads", kv_heads, spec.num_kv_heads),
        ("mlp_columns", columns, spec.intermediate_size),
    ]:
        if wanted > there:
            raise CompressionError(f"structure.{name} {wanted} is more than the model's {there}")
    return replace(
        spec,
        num_layers=layers,
        layer_windows=spec.layer_windows[:layers],
        num_kv_heads=kv_heads,
        num_heads=kv_heads * spec.group_size,
        intermediate_size=columns,
    )


def kept_kv_heads(out: Tensor, moments: Tensor, spec: ModelSpec, count: int) -> Tensor:
    """The KV heads whose query heads give most to the output: the mean square of their share of it.

    out [hidden, heads * head_dim]; moments [heads * head_dim, heads * head_dim] of its inputs.
    """
    width = spec.head_dim * spec.group_size
    shares = [
        torch.einsum("oi,ij,oj->", out[:, part], moments[part, part], out[:, part])
        for part in (slice(i, i + width) for i in range(0, out.shape[1], width))
    ]
    return torch.stack(shares).argsort(descending=True)[:count].sort().values


def kept_columns(down: Tensor, moments: Tensor, count: int) -> Tensor:
    """The MLP columns that give most to the output. down [hidden, columns]; moments [columns, columns]."""
    shares = moments.diagonal() * down.square().sum(dim=0)
    return shares.argsort(descending=True)[:count].sort().values


def refitted(weight: Tensor, moments: Tensor, kept: Tensor, damping: float) -> Tensor:
    """The weights [rows, kept] of the inputs that are kept that come nearest to the output of all: least squares."""
    within = moments[kept][:, kept].clone()
    diagonal = within.diagonal()
    diagonal += damping * diagonal.mean()
    wanted = weight @ moments[:, kept] + damping * moments.diagonal()[kept].mean() * weight[:, kept]
    return torch.linalg.solve(within, wanted.T).T.contiguous()


def rows_of(heads: Tensor, width: int) -> Tensor:
    """The rows of heads that are `width` wide each."""
    return (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()


def influence(before: Tensor, after: Tensor) -> float:
    """How much a layer changes its input: 1 - the mean cosine of both (Men et al., "ShortGPT", 2024).

    before, after [..., hidden]
    """
    return 1 - float(torch.nn.functional.cosine_similarity(before, after, dim=-1).mean())
