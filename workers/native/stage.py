"""A rank's stage in the native library: every step is one call, which leaves the interpreter to other threads."""

from __future__ import annotations

import ctypes
import os
from ctypes import Structure, c_char_p, c_float, c_int, c_long, c_void_p
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from partitioning.plan import Plan, RankPlan
from partitioning.rotary import rotary_angles
from workers.collectives import Group, SharedMemoryGroup
from workers.model.stage import StageResult
from workers.model.weights import LayerWeights, Matrix, WeightReader
from workers.native.calls import GroupCalls
from workers.native.drawing import NativeDrawing
from workers.native.interface import declare
from workers.native.screen import Screen, ScreenOf
from workers.native.team import Team
from workers.native.weights import PackedWeight, padded_to_lanes
from workers.request import EngineConfig
from workers.sampling.draws import Draws
from workers.step_plan import StepPlan

Kept = TypeVar("Kept")

_DTYPES = ("float32", "bfloat16")
_AllReduce = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_long)


class _Reducer(Structure):
    _fields_ = (("all_reduce", c_void_p), ("self", c_void_p))


class _Shape(Structure):
    _fields_ = (
        *((name, c_long) for name in ("hidden", "head_dim", "heads", "kv_heads", "mlp")),
        *((name, c_long) for name in ("max_tokens", "max_sequences", "max_blocks", "kv_blocks", "block_size")),
        *((name, c_long) for name in ("ranks", "vocab_start", "vocab")),
        *((name, c_int) for name in ("float32", "int8_cache")),
        ("eps", c_float),
        *((name, c_void_p) for name in ("cos", "sin", "query_heads", "token_keys")),
        ("reducer", _Reducer),
        ("team", c_void_p),
    )


class _Layer(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("attention_norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, c_void_p) for name in ("qkv", "out", "gate_up", "down", "qkv_bias")),
        ("window", c_long),
    )


class _Step(Structure):
    """It keeps what is bytes here: to copy a small numpy array takes less time than to find out its address."""

    _fields_ = (
        ("rows", c_char_p),
        ("sequences", c_long),
        ("updates", c_char_p),
        ("updates_count", c_long),
        ("tokens", c_char_p),
        ("tokens_count", c_long),
        ("hidden_in", c_void_p),
        ("hidden_out", c_void_p),
        ("logits", c_void_p),
        ("logits_stride", c_long),
        ("draws", c_char_p),
        ("best_scores", c_void_p),
        ("best_ids", c_void_p),
        ("layers", c_long),
    )


def supports(plan: Plan, device: torch.device) -> bool:
    """Whether the native engine computes this plan's type on this device."""
    return device.type == "cpu" and plan.dtype in _DTYPES


class _Best:
    """Where a step puts the best scores and their ids, at the same `addresses` every time."""

    def __init__(self) -> None:
        self._grow(1)

    def room(self, samples: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        if samples > len(self._ids):
            self._grow(samples)
        return self._scores[:samples], self._ids[:samples]

    def _grow(self, samples: int) -> None:
        self._scores, self._ids = np.empty(samples, dtype=np.float32), np.empty(samples, dtype=np.int32)
        self.addresses = self._scores.ctypes.data, self._ids.ctypes.data


class NativeStage:
    """The layers of one stage, its KV cache included. It computes with the threads of the stage `beside` it, if there
    is one, which then never runs at the same time: two teams would take the cores from each other, as threads that wait
    look for work for a while."""

    last_tokens: Tensor | None = None

    def __init__(
        self,
        native: ctypes.CDLL,
        weights: WeightReader,
        plan: Plan,
        rank: RankPlan,
        config: EngineConfig,
        group: Group,
        beside: NativeStage | None = None,
    ) -> None:
        declare(native)
        self._native, self._group = native, group
        self._layers = len(rank.layers)
        self._hidden = plan.model.hidden_size
        self._last = rank.stage == plan.pp - 1
        self._logits = torch.empty(0, len(rank.vocab))  # of the last step that was asked for any
        self._best = _Best()
        self._kept: list[object] = []  # what the library points to
        self._calls = GroupCalls(group)
        layers = (_Layer * len(rank.layers))(*map(self._layer, weights.layers()))
        ends = weights.ends()
        head = self._packed(ends.head, sparse=False)
        embedding = head if ends.embedding is ends.head else self._packed(ends.embedding, sparse=False)
        norm = None if ends.norm is None else self._vector(ends.norm)
        self._team: Team = _team(native, plan) if beside is None else beside._team
        self.drawing = NativeDrawing(native, self._team, rank.vocab, plan.model.vocab_size, group)
        shape = self._shape(plan, rank, config)
        screen = None if ends.head is None else self._keep(Screen.of(native, ends.head))
        screened = ScreenOf() if screen is None else screen.native
        self._stage: int | None = native.phx_stage_new(
            ctypes.byref(shape), layers, len(layers), embedding, norm, head, ctypes.byref(screened)
        )
        if self._stage is None:
            raise MemoryError("no memory for KV cache and activations; lower kv_cache_tokens or max_batch_tokens")

    def __del__(self) -> None:
        if getattr(self, "_stage", None) is not None:
            self._native.phx_stage_free(self._stage)

    def run(self, plan: StepPlan, hidden: Tensor | None, draws: Draws | None, layers: int | None = None) -> StageResult:
        """One step: see `workers.model.stage.Stage`.

        Raises:
            CollectiveStalled: another rank of the stage is gone.
        """
        tokens = len(plan.tokens)
        result = StageResult()
        step = _Step(
            rows=plan.rows.tobytes(),
            sequences=len(plan.rows),
            updates=plan.block_updates.tobytes(),
            updates_count=len(plan.block_updates),
            tokens=plan.tokens.tobytes(),
            tokens_count=tokens,
            hidden_in=None if hidden is None else hidden.data_ptr(),
            layers=self._layers if layers is None else layers,
        )
        if not self._last:
            result.hidden = torch.empty(tokens, self._hidden)
            step.hidden_out = result.hidden.data_ptr()
        elif draws is not None:
            result.best = self._best.room(len(draws))
            step.draws = draws.tobytes()
            step.best_scores, step.best_ids = self._best.addresses
        else:
            result.logits = self._room(int(plan.rows[:, 3].sum()))
            step.logits, step.logits_stride = result.logits.data_ptr(), result.logits.shape[1]
        status = self._native.phx_stage_run(self._stage, ctypes.byref(step))
        self._calls.check(status)
        return result

    def _room(self, samples: int) -> Tensor:
        """[samples, shard], the same memory every time: the system zeroes what is fresh, which takes longer than draws
        do."""
        if len(self._logits) < samples:
            self._logits = torch.empty(samples, self._logits.shape[1])
        return self._logits[:samples]

    def _shape(self, plan: Plan, rank: RankPlan, config: EngineConfig) -> _Shape:
        spec = plan.model
        cos, sin = rotary_angles(spec.rope, spec.head_dim, config.max_model_len)
        return _Shape(
            hidden=spec.hidden_size,
            head_dim=spec.head_dim,
            heads=len(rank.heads),
            kv_heads=len(rank.kv_heads),
            mlp=len(rank.mlp),
            max_tokens=config.max_batch_tokens,
            max_sequences=config.max_running,
            max_blocks=-(-config.max_model_len // plan.kv_block_size),
            kv_blocks=plan.kv_blocks,
            block_size=plan.kv_block_size,
            ranks=plan.tp,
            vocab_start=rank.vocab.start,
            vocab=len(rank.vocab),
            float32=plan.dtype == "float32",
            int8_cache=plan.kv_cache == "int8",
            eps=spec.norm_eps,
            cos=self._vector(cos),
            sin=self._vector(sin),
            query_heads=self._keep(np.array(rank.readers(spec.group_size), dtype=np.int32)).ctypes.data,
            token_keys=self.drawing.token_keys.data_ptr(),
            reducer=self._reducer(),
            team=self._team.address,
        )

    def _layer(self, layer: LayerWeights) -> _Layer:
        query_norm, key_norm = layer.head_norms or (None, None)
        return _Layer(
            attention_norm=self._vector(layer.attention_norm),
            query_norm=None if query_norm is None else self._vector(query_norm),
            key_norm=None if key_norm is None else self._vector(key_norm),
            mlp_norm=self._vector(layer.mlp_norm),
            qkv=self._packed(layer.qkv),
            out=self._packed(layer.out),
            gate_up=self._packed(layer.gate, layer.up),
            down=self._packed(layer.down),
            qkv_bias=None if layer.qkv_bias is None else self._vector(layer.qkv_bias),
            window=layer.window,
        )

    def _packed(self, *parts: Matrix | None, sparse: bool = True) -> int | None:
        """The address of the packed matrix; None for one without rows or columns. Rows of a `sparse` one cannot be
        looked up."""
        matrices = [part for part in parts if part is not None]
        if not matrices or 0 in matrices[0].shape:
            return None
        return self._keep(PackedWeight(self._native, matrices, sparse)).address

    def _vector(self, values: Tensor) -> int:
        return self._keep(padded_to_lanes(values) if values.dim() == 1 else values.float().contiguous()).data_ptr()

    def _reducer(self) -> _Reducer:
        """Ranks of one host meet in the library itself; between hosts, the stage calls back."""
        if isinstance(self._group, SharedMemoryGroup):
            return _Reducer(ctypes.cast(self._native.phx_all_reduce_f32, c_void_p), self._group.native)

        group = self._group

        def all_reduce(_: int, address: int, count: int) -> None:
            group.all_reduce(torch.frombuffer((c_float * count).from_address(address), dtype=torch.float32))

        return _Reducer(all_reduce=ctypes.cast(self._keep(_AllReduce(self._calls.back(all_reduce))), c_void_p))

    def _keep(self, thing: Kept) -> Kept:
        self._kept.append(thing)
        return thing


def _team(native: ctypes.CDLL, plan: Plan) -> Team:
    threads = torch.get_num_threads()
    return Team(native, threads, patient=plan.tp * plan.pp * threads <= (os.cpu_count() or 1))
