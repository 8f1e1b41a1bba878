"""Which query heads read which KV head, where a cut through a group has left some KV heads fewer than others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Readers:
    """Query heads in the order of the KV heads that they read, `counts[i]` of them KV head i.

    Kernels of grouped-query attention want as many for each KV head. To fill up the queries with zeros costs less than
    to repeat keys and values: these are as long as the context.
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self.heads, self.kv_heads = sum(counts), len(counts)
        self._most = max(counts, default=0)
        places = [kv * self._most + number for kv, count in enumerate(counts) for number in range(count)]
        self._places = None if len(set(counts)) <= 1 else torch.tensor(places, device=device)

    def evened(self, q: Tensor) -> Tensor:
        """q [tokens, heads, head_dim] → [tokens, kv_heads * most, head_dim]."""
        if self._places is None:
            return q
        return q.new_zeros(len(q), self.kv_heads * self._most, q.shape[2]).index_copy_(1, self._places, q)

    def chosen(self, out: Tensor) -> Tensor:
        """The other way: [tokens, kv_heads * most, head_dim] → [tokens, heads, head_dim]."""
        return out if self._places is None else out.index_select(1, self._places)
