"""What the layers compute with: one interface, in torch's operations here and in Triton's kernels in `workers.gpu`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from workers.model.attention import KVCache
from workers.model.batch import Batch, BatchBuilder, Sequences
from workers.model.weights import Matrix
from workers.step_plan import StepPlan

if TYPE_CHECKING:
    from workers.model.decoder import Decoder

Linear = Callable[[Tensor], Tensor]  # x [tokens, in] → [tokens, out]
HeadNorms = tuple[Tensor, Tensor, float]  # weights [head_dim] of queries and keys, and eps
Rotary = tuple[Tensor, Tensor]  # cos and signed sin of each token, [tokens, 1, head_dim]


@dataclass(frozen=True)
class AttentionLayer:
    """What attention has of a layer besides its products. `window`: how many tokens are seen, 0 for all."""

    norms: HeadNorms | None
    cache: KVCache
    window: int


class Graphs(Protocol):
    def run(self, plan: StepPlan, hidden: Tensor | None) -> Tensor | None:
        """Hidden states [tokens, hidden] or, of the last stage, logits [tokens, shard], in float32, which the next step
        may overwrite. None where the step is not one of decoding."""
        ...


class Kernels(Protocol):
    """Of one rank. Tensors are on its device, activations in its plan's type."""

    def linear(self, weight: Matrix, bias: Tensor | None) -> Linear:
        """A product with the weight [out, in]."""
        ...

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm (Zhang & Sennrich, 2019) of each row of x [tokens, columns]."""
        ...

    def add_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x + delta, and its norm."""
        ...

    def gated(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up: [tokens, 2 * columns], gate's first, → [tokens, columns]."""
        ...

    def plan(self, sequences: Sequences) -> Any:
        """What `attention` wants to know of a step."""
        ...

    def attention(self, qkv: Tensor, layer: AttentionLayer, rotary: Rotary, batch: Batch) -> Tensor:
        """Norms and rotates heads, keeps keys and values, and attends: qkv [tokens, heads + 2 * kv_heads, head_dim] →
        [tokens, heads, head_dim]. Each query looks at its own sequence up to itself, within the layer's window."""
        ...

    def graphs(self, decoder: Decoder, batches: BatchBuilder, replayed: int) -> Graphs | None:
        """What replays decode steps of the decoder, if something does. `replayed` is the group's."""
        ...
