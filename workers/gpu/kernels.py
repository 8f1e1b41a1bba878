"""What the layers compute with on a GPU: Triton's kernels, and torch's own products of floats."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from partitioning.plan import Plan, RankPlan
from partitioning.quantised import Channels, FloatCodes, Quantised
from workers.gpu.attention import paged_attention
from workers.gpu.decode_graphs import CudaGraphs, DecodeGraphs, Record
from workers.gpu.float_products import FloatLinear
from workers.gpu.heads import place_heads
from workers.gpu.launch import programs_of
from workers.gpu.products import ChannelLinear, GroupLinear
from workers.gpu.rows import add_norm, gated, norm
from workers.gpu.tiles import Tiling
from workers.model.batch import Batch, BatchBuilder
from workers.model.decoder import Decoder
from workers.model.kernels import AttentionLayer, Linear, Rotary
from workers.model.weights import Matrix


class TritonKernels:
    """See `Kernels`. `record`: what decode steps are recorded with; None: CUDA graphs, where there is CUDA."""

    norm = staticmethod(norm)
    add_norm = staticmethod(add_norm)
    gated = staticmethod(gated)

    def __init__(self, plan: Plan, rank: RankPlan, device: torch.device, record: Record | None = None) -> None:
        self._hidden_size = plan.model.hidden_size
        dtype: torch.dtype = getattr(torch, plan.dtype)
        row_bytes = triton.next_power_of_2(plan.model.head_dim) * dtype.itemsize
        self._tiling = Tiling(rank.readers(plan.model.group_size), row_bytes, device)
        self.plan = self._tiling.plan
        self._dtype = dtype
        self._programs = programs_of(device)
        if record is None and device.type == "cuda":
            record = CudaGraphs(device)
        self._record = record

    def linear(self, weight: Matrix, bias: Tensor | None) -> Linear:
        if isinstance(weight, Quantised):
            return GroupLinear(weight, bias)
        if isinstance(weight, Channels):
            return ChannelLinear(weight, bias)
        if isinstance(weight, FloatCodes):
            return FloatLinear(weight, bias)
        assert isinstance(weight, Tensor)
        return lambda x: F.linear(x, weight, bias).contiguous()  # of sparse weights it is a transpose

    def attention(self, qkv: Tensor, layer: AttentionLayer, rotary: Rotary, batch: Batch) -> Tensor:
        q = place_heads(qkv, layer.norms, rotary, batch.cache_slots, layer.cache)
        return paged_attention(q, layer.cache, batch.attention, self._tiling, layer.window, self._programs)

    def graphs(self, decoder: Decoder, batches: BatchBuilder, replayed: int) -> DecodeGraphs | None:
        most = replayed // self._hidden_size  # sequences, whose sums are those of their hidden states
        if self._record is None or not most:
            return None
        return DecodeGraphs(decoder, batches, self._tiling.decoding, self._dtype, self._hidden_size, self._record, most)
