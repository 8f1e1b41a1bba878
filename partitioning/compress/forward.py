"""A decoder layer over whole sequences, in plain torch: what calibration runs, product by product."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from partitioning.model_spec import ModelSpec
from partitioning.rotary import rotary_angles, rotate


class Layer:
    """The operations between the products of one layer. `weights` are the layer's tensors, by name within it."""

    def __init__(self, spec: ModelSpec, window: int, weights: Mapping[str, Tensor]) -> None:
        self._spec, self._window, self._weights = spec, window, weights

    def attention_inputs(self, hidden: Tensor) -> Tensor:
        """hidden [sequences, tokens, hidden] → what q, k and v multiply."""
        return self._norm(hidden, "input_layernorm")

    def attention(self, x: Tensor) -> Tensor:
        """→ what `o_proj` multiplies, [sequences, tokens, heads * head_dim]."""
        spec, (sequences, tokens, _) = self._spec, x.shape
        q, k, v = (self._projected(x, name) for name in "qkv")
        cos, sin = rotary_angles(spec.rope, spec.head_dim, tokens)
        both = torch.cat([cos, cos], dim=-1).to(x), torch.cat([-sin, sin], dim=-1).to(x)
        if spec.qk_norm:
            q, k = self._norm(q, "self_attn.q_norm"), self._norm(k, "self_attn.k_norm")
        q, k = rotate(q, *both), rotate(k, *both)
        mask = None
        if self._window and self._window < tokens:
            distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
            mask = ((distance >= 0) & (distance < self._window)).to(x.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return out.transpose(1, 2).reshape(sequences, tokens, -1)

    def mlp_inputs(self, hidden: Tensor) -> Tensor:
        return self._norm(hidden, "post_attention_layernorm")

    def columns(self, x: Tensor) -> Tensor:
        """→ what `down_proj` multiplies, [sequences, tokens, columns]."""
        gate = F.linear(x, self._weights["mlp.gate_proj.weight"])
        return F.silu(gate) * F.linear(x, self._weights["mlp.up_proj.weight"])

    def out(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weights["self_attn.o_proj.weight"])

    def down(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weights["mlp.down_proj.weight"])

    def _projected(self, x: Tensor, name: str) -> Tensor:
        """[sequences, heads, tokens, head_dim]"""
        prefix = f"self_attn.{name}_proj"
        out = F.linear(x, self._weights[f"{prefix}.weight"], self._weights.get(f"{prefix}.bias"))
        return out.view(*x.shape[:2], -1, self._spec.head_dim).transpose(1, 2)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self._weights[f"{name}.weight"], self._spec.norm_eps)
