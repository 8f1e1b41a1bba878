"""One layer, made smaller: product after product, each on the inputs that the ones before it, already smaller, give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from partitioning.compress.forward import Layer
from partitioning.compress.grid import grid_of, rounded_tokens, stored_tensors
from partitioning.compress.recipe import Quantise, Sparsify, Work
from partitioning.compress.smoothing import smoothing
from partitioning.compress.structure import kept_columns, kept_kv_heads, refitted, rows_of
from partitioning.compress.surgeon import Pruning, least_of, operate, to_grid, to_kept
from partitioning.model_spec import ModelSpec

_CHUNK = 4  # sequences at a time: the rest of the memory is the layer's and one matrix of moments
_SEARCHED = 4  # sequences that AWQ's scales are tried on

_QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
_OUT, _DOWN = "self_attn.o_proj", "mlp.down_proj"
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


class SmallerLayer:
    """Layer `number` of the smaller model. `weights` are the tensors of a layer of the larger one, float32, by name
    within it, and become what the smaller one computes with; `hidden` [sequences, tokens, hidden] is its input, and
    becomes its output; None where nothing depends on it. `stored` are the tensors to write."""

    def __init__(
        self, work: Work, spec: ModelSpec, number: int, window: int, weights: dict[str, Tensor], hidden: Tensor | None
    ) -> None:
        self._work, self._spec, self._number, self._window = work, spec, number, window
        self._weights, self._hidden = weights, hidden
        self._layer = Layer(spec, window, weights)
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self.stored: dict[str, Tensor] = {}

    def run(self) -> dict[str, Tensor]:
        """The tensors to write, by their full names."""
        layer = self._layer
        self._drop_heads()
        self._smooth(_QKV, layer.attention_inputs, lambda new, x: new.out(new.attention(x)), "input_layernorm.weight")
        self._settle(_QKV, layer.attention_inputs)
        self._settle((_OUT,), self._attention)
        self._advance(lambda h: layer.out(self._attention(h)))
        self._drop_columns()
        self._smooth((_DOWN,), self._columns, Layer.down, "mlp.up_proj.weight")
        mlp = "post_attention_layernorm.weight"
        self._smooth(_GATE_UP, layer.mlp_inputs, lambda new, x: new.down(new.columns(x)), mlp)
        self._settle(_GATE_UP, layer.mlp_inputs)
        self._settle((_DOWN,), self._columns)
        self._advance(lambda h: layer.down(self._columns(h)))
        for name, tensor in self._weights.items():
            if name.removesuffix(".weight") not in (*_QKV, _OUT, *_GATE_UP, _DOWN):
                self.stored[self._full(name)] = tensor.to(self._dtype)
        return self.stored

    def _attention(self, hidden: Tensor) -> Tensor:
        return self._layer.attention(self._layer.attention_inputs(hidden))

    def _columns(self, hidden: Tensor) -> Tensor:
        return self._layer.columns(self._layer.mlp_inputs(hidden))

    def _drop_heads(self) -> None:
        structure, count = self._work.recipe.structure, self._work.shape.num_kv_heads
        if structure is None or count == self._spec.num_kv_heads:
            return
        weights, dim, group = self._weights, self._spec.head_dim, self._spec.group_size
        moments = self._moments(self._attention)
        heads = kept_kv_heads(weights[f"{_OUT}.weight"], moments, self._spec, count)
        queries = rows_of(heads, dim * group)
        weights[f"{_OUT}.weight"] = refitted(weights[f"{_OUT}.weight"], moments, queries, structure.damping)
        for stem, rows in zip(_QKV, (queries, rows_of(heads, dim), rows_of(heads, dim)), strict=True):
            for name in (f"{stem}.weight", f"{stem}.bias"):
                if name in weights:
                    weights[name] = weights[name][rows].contiguous()

    def _drop_columns(self) -> None:
        structure, count = self._work.recipe.structure, self._work.shape.intermediate_size
        if structure is None or count == self._spec.intermediate_size:
            return
        down, moments = self._weights[f"{_DOWN}.weight"], self._moments(self._columns)
        kept = kept_columns(down, moments, count)
        self._weights[f"{_DOWN}.weight"] = refitted(down, moments, kept, structure.damping)
        for stem in _GATE_UP:
            self._weights[f"{stem}.weight"] = self._weights[f"{stem}.weight"][kept].contiguous()

    def _smooth(
        self,
        stems: Sequence[str],
        inputs: Callable[[Tensor], Tensor],
        outputs: Callable[[Layer, Tensor], Tensor],
        before: str,
    ) -> None:
        """Scales the inputs of these matrices, where a rule wants that of all of them, so that `outputs`, of a layer
        with other matrices and those inputs, change least; `before` takes the scales back."""
        rules = {self._work.quantise.get(self._full(stem)) for stem in stems}
        rule = rules.pop()
        if rules or rule is None or not rule.smooths:
            return
        weights, names = self._weights, [f"{stem}.weight" for stem in stems]
        assert self._hidden is not None
        every = -(-len(self._hidden) // _SEARCHED)
        some = [inputs(chunk) for chunk in torch.split(self._hidden[::every], _CHUNK)]
        wanted = [outputs(self._layer, x) for x in some]

        def loss(rounded: Sequence[Tensor], scales: Tensor) -> float:
            new = Layer(self._spec, self._window, weights | dict(zip(names, rounded, strict=True)))
            seen = [rounded_tokens(x / scales, rule) * scales for x in some]
            return sum(float((outputs(new, x) - y).square().sum()) for x, y in zip(seen, wanted, strict=True))

        sizes = [inputs(chunk).abs().mean(dim=(0, 1)) for chunk in torch.split(self._hidden, 1)]
        size = torch.stack(sizes).mean(dim=0)
        scales = smoothing([weights[name] for name in names], size, rule, self._dtype, loss)
        for name in names:
            weights[name] = weights[name] * scales
        scaled = weights[before] / (scales if weights[before].dim() == 1 else scales[:, None])
        # Norms are stored as they are, and what follows has to see them so.
        weights[before] = scaled.to(self._dtype).float() if scaled.dim() == 1 else scaled

    def _settle(self, stems: Iterable[str], inputs: Callable[[Tensor], Tensor]) -> None:
        """Makes matrices that multiply the same inputs sparse and quantised, as their rules say."""
        moments: Tensor | None = None
        for stem in stems:
            full, weight = self._full(stem), self._weights[f"{stem}.weight"]
            sparse, bits = self._work.sparsify.get(full), self._work.quantise.get(full)
            if moments is None and _need_moments(sparse, bits):
                moments = self._moments(inputs)
            zeros: Tensor | None = None
            if sparse is not None:
                weight, zeros = _sparse(weight, moments, sparse)
            if bits is None:
                stored = weight.to(self._dtype)
                self.stored[f"{full}.weight"] = stored
                self._weights[f"{stem}.weight"] = stored.float()
                continue
            grid = grid_of(weight, bits, self._dtype, None if moments is None else moments.diagonal())
            if bits.method == "gptq":
                assert moments is not None
                settle = to_grid(grid) if zeros is None else to_kept(zeros, to_grid(grid))
                weight = operate(weight, moments, bits.damping, ordered=bits.act_order, settle=settle)
            self.stored |= stored_tensors(full, weight, grid, bits, self._dtype)
            self._weights[f"{stem}.weight"] = grid.rounded(weight)

    def _moments(self, inputs: Callable[[Tensor], Tensor]) -> Tensor:
        """[inputs, inputs] The mean of the inputs' products with each other, over all tokens."""
        assert self._hidden is not None
        total: Tensor | None = None
        for chunk in torch.split(self._hidden, _CHUNK):
            x = inputs(chunk).flatten(0, 1)
            total = x.T @ x if total is None else total.addmm_(x.T, x)
        assert total is not None
        return total / (self._hidden.shape[0] * self._hidden.shape[1])

    def _advance(self, change: Callable[[Tensor], Tensor]) -> None:
        if self._hidden is not None:
            for chunk in torch.split(self._hidden, _CHUNK):
                chunk += change(chunk)

    def _full(self, name: str) -> str:
        return f"model.layers.{self._number}.{name}"


def _need_moments(sparse: Sparsify | None, bits: Quantise | None) -> bool:
    return (sparse is not None and sparse.method != "magnitude") or (
        bits is not None and (bits.method == "gptq" or (bits.method == "awq" and bits.search))
    )


def _sparse(weight: Tensor, moments: Tensor | None, rule: Sparsify) -> tuple[Tensor, Tensor]:
    """The weight with zeros in it, and their mask."""
    if rule.method == "magnitude":
        zeros = least_of(weight.abs(), rule)
        return weight.masked_fill(zeros, 0.0), zeros
    assert moments is not None
    if rule.method == "wanda":
        zeros = least_of(weight.abs() * moments.diagonal().sqrt(), rule)
        return weight.masked_fill(zeros, 0.0), zeros
    pruning = Pruning(rule, weight.shape, weight.device)
    weight = operate(weight, moments, rule.damping, ordered=False, settle=pruning)
    return weight, pruning.zeros
