"""Decode steps of fixed shapes, which are recorded once and replayed.

On a GPU a step of few tokens takes as long as the processor needs to start its hundreds of kernels; a CUDA graph starts
them all at once (Nguyen et al., "Accelerating PyTorch with CUDA Graphs", 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.collectives import Group
from workers.model.batch import Batch, BatchBuilder, decodes_of
from workers.model.decoder import Decoder
from workers.step_plan import StepPlan

Replay = Callable[[], None]
Record = Callable[[Replay], Replay]

_FEW = (1, 2, 4, 8)  # sequences of a graph; beyond them, multiples of
_STEP = 16
# Keys and values that a layer of a graph copies together, in tokens: with more, attention outweighs starting kernels,
# and graphs would keep more memory than they are worth.
_MOST_TOKENS = 1 << 17


def recorder(device: torch.device, group: Group) -> Record | None:
    """What records on this device; None where nothing can be, or ranks meet within a step: what they meet with is not
    made to be replayed."""
    return CudaGraphs() if device.type == "cuda" and group.size == 1 else None


class CudaGraphs:
    """Graphs that share their memory, as no two of them run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Replay) -> Replay:
        # The first run loads kernels and chooses among them, which must not be recorded.
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            run()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        replay: Replay = graph.replay
        return replay


@dataclass
class _Recorded:
    """`inputs` [sequences, 2 + blocks]: token, position, block table. `hidden` [sequences, hidden]: of the stage
    before."""

    inputs: Tensor
    hidden: Tensor | None
    output: Tensor
    replay: Replay


class DecodeGraphs:
    """The layers of a stage for steps of one token a sequence. What a graph has too many of are sequences whose only
    KV block is `spare`, which is nobody's."""

    def __init__(
        self, decoder: Decoder, batches: BatchBuilder, spare: int, dtype: torch.dtype, hidden_size: int, record: Record
    ) -> None:
        self._decoder, self._batches, self._spare = decoder, batches, spare
        self._dtype, self._hidden_size, self._record = dtype, hidden_size, record
        self._recorded: dict[tuple[int, int], _Recorded] = {}

    def run(self, plan: StepPlan, hidden: Tensor | None) -> Tensor | None:
        """Hidden states [tokens, hidden] or, of the last stage, logits [tokens, shard], in float32, which the next step
        may overwrite. None where the step is of another kind."""
        if not len(plan.rows) or (plan.rows[:, 2:] != 1).any():
            return None
        slots, positions = torch.from_numpy(plan.rows).long().unbind(1)[:2]
        count = len(slots)
        sequences, blocks = _shape(count, int(positions.max()) // self._batches.block_size + 1)
        if sequences * blocks * self._batches.block_size > _MOST_TOKENS:
            return None
        inputs = torch.full((sequences, 2 + blocks), self._spare)
        inputs[count:, :2] = 0
        inputs[:count, 0] = torch.from_numpy(plan.tokens)
        inputs[:count, 1] = positions
        table = self._batches.tables(slots)[:, :blocks]
        inputs[:count, 2 : 2 + table.shape[1]] = table
        recorded = self._recorded.get((sequences, blocks))
        if recorded is None:
            recorded = self._recorded[sequences, blocks] = self._new(inputs, hidden is not None)
        recorded.inputs.copy_(inputs)
        if recorded.hidden is not None:
            assert hidden is not None
            recorded.hidden[:count].copy_(hidden)
        recorded.replay()
        return recorded.output[:count]

    def _new(self, inputs: Tensor, takes_hidden: bool) -> _Recorded:
        device = self._batches.device
        inputs = inputs.to(device)
        hidden = None
        if takes_hidden:
            hidden = torch.zeros(len(inputs), self._hidden_size, dtype=self._dtype, device=device)
        outputs: list[Tensor] = []

        def run() -> None:
            output = self._step(inputs, hidden)
            if not outputs:
                outputs.append(torch.empty_like(output))
            outputs[0].copy_(output)

        replay = self._record(run)
        return _Recorded(inputs, hidden, outputs[0], replay)

    def _step(self, inputs: Tensor, x: Tensor | None) -> Tensor:
        tokens, positions, tables = inputs[:, 0], inputs[:, 1], inputs[:, 2:]
        size, rows = self._batches.block_size, torch.arange(len(inputs), device=inputs.device)
        block = tables.gather(1, (positions // size).unsqueeze(1))[:, 0]
        batch = Batch(
            tokens=tokens,
            positions=positions,
            cache_slots=block * size + positions % size,
            decodes=(decodes_of(rows, tables, positions, size, self._batches.windows),),
            chunks=(),
            sample_rows=rows,
        )
        if x is None:
            assert self._decoder.embedding is not None
            x = self._decoder.embedding(tokens)
        x = self._decoder.hidden(x, batch)
        return x.float() if self._decoder.head is None else self._decoder.logits(x)


def _shape(sequences: int, blocks: int) -> tuple[int, int]:
    """The least shape of a graph that has room for these: blocks are powers of two."""
    few = next((size for size in _FEW if size >= sequences), None)
    return few or -(-sequences // _STEP) * _STEP, 1 << (blocks - 1).bit_length()
