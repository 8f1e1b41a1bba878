"""Decode steps of fixed shapes, which are recorded once and replayed.

On a GPU a step of few tokens takes as long as the processor needs to start its hundreds of kernels; a CUDA graph starts
them all at once (Nguyen et al., "Accelerating PyTorch with CUDA Graphs", 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.model.batch import Batch, BatchBuilder
from workers.model.decoder import Decoder
from workers.step_plan import StepPlan
from workers.transfer import to_device

Replay = Callable[[], None]
Record = Callable[[Replay], Replay]

_FEW = (1, 2, 4, 8)  # sequences of a graph; beyond them, multiples of
_STEP = 16


class CudaGraphs:
    """Graphs of one device that share their memory, as no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Replay) -> Replay:
        with torch.cuda.device(self._device):  # a thread's streams are those of its current device
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
    """`inputs` int64 [3, sequences]: tokens, positions, slots. `hidden` [sequences, hidden]: of the stage before."""

    inputs: Tensor
    hidden: Tensor | None
    output: Tensor
    replay: Replay


class DecodeGraphs:
    """The layers of a stage for steps of one token a sequence. What a graph has too many of are sequences in the slot
    that is nobody's.

    `attention_plan` makes what attention wants to know of a step's slots and positions, on the device. Of more than
    `most` sequences there is no graph.
    """

    def __init__(
        self,
        decoder: Decoder,
        batches: BatchBuilder,
        attention_plan: Callable[[Tensor, Tensor, Tensor], object],
        dtype: torch.dtype,
        hidden_size: int,
        record: Record,
        most: int,
    ) -> None:
        self._decoder, self._batches, self._attention_plan = decoder, batches, attention_plan
        self._dtype, self._hidden_size, self._record = dtype, hidden_size, record
        self._most = most
        self._recorded: dict[int, _Recorded] = {}

    def run(self, plan: StepPlan, hidden: Tensor | None) -> Tensor | None:
        """See `Graphs`."""
        if not len(plan.rows) or (plan.rows[:, 2:] != 1).any():
            return None
        slots, positions = torch.from_numpy(plan.rows).long().unbind(1)[:2]
        count = len(slots)
        if (sequences := _sequences(count)) > self._most:
            return None
        inputs = torch.zeros(3, sequences, dtype=torch.int64)
        inputs[2] = len(self._batches.tables) - 1
        inputs[:, :count] = torch.stack([torch.from_numpy(plan.tokens).long(), positions, slots])
        recorded = self._recorded.get(sequences)
        if recorded is None:
            recorded = self._recorded[sequences] = self._new(inputs, hidden is not None)
        recorded.inputs.copy_(to_device(inputs, self._batches.device))
        if recorded.hidden is not None:
            assert hidden is not None
            recorded.hidden[:count].copy_(hidden)
        recorded.replay()
        return recorded.output[:count]

    def _new(self, inputs: Tensor, takes_hidden: bool) -> _Recorded:
        device = self._batches.device
        inputs = inputs.to(device, copy=True)
        hidden = None
        if takes_hidden:
            hidden = torch.zeros(inputs.shape[1], self._hidden_size, dtype=self._dtype, device=device)
        outputs: list[Tensor] = []

        def run() -> None:
            output = self._step(inputs, hidden)
            if not outputs:
                outputs.append(torch.empty_like(output))
            outputs[0].copy_(output)

        replay = self._record(run)
        return _Recorded(inputs, hidden, outputs[0], replay)

    def _step(self, inputs: Tensor, x: Tensor | None) -> Tensor:
        tokens, positions, slots = inputs
        batch = Batch(
            tokens=self._batches.known(tokens, slots),
            positions=positions,
            cache_slots=self._batches.cache_slots(slots, positions),
            attention=self._attention_plan(self._batches.tables, slots, positions),
            sample_rows=torch.arange(len(tokens), device=tokens.device),
        )
        x = self._decoder.hidden(x, batch)
        return x.float() if self._decoder.head is None else self._decoder.logits(x)


def _sequences(count: int) -> int:
    """Of the smallest graph that has room for so many."""
    few = next((size for size in _FEW if size >= count), None)
    return few or -(-count // _STEP) * _STEP
