"""What a comparison has measured, and its two tables: every engine's figures, and the targets' verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.verdict import Verdict
from benchmarks.work import decode_bytes, model_of, prefill_operations
from benchmarks.workload import WORKLOADS

Line = dict[str, Any]
OWN, TP2, PP2 = "Phalanx", "Phalanx tp=2", "Phalanx pp=2"
OWN_INT8, OWN_W8A8, OWN_4BIT = "Phalanx Q8_0", "Phalanx W8A8", "Phalanx Q4_1"
OWN_W8A8_CACHE8 = "Phalanx W8A8, int8 KV cache"
TRANSFORMERS, VLLM, LLAMA = "transformers", "vLLM", "llama.cpp BF16"
VLLM_FLOAT32 = "vLLM float32"  # its best where a processor has no products of bfloat16
LLAMA_INT8, LLAMA_4BIT = "llama.cpp Q8_0", "llama.cpp Q4_1"
_PEERS = (TRANSFORMERS, VLLM, VLLM_FLOAT32, LLAMA)  # of bfloat16 weights
_IDLE_CORES = 0.2
_PROMPT = next(workload.prompt_tokens for workload in WORKLOADS if workload.name == "prefill")


@dataclass(frozen=True)
class Measured:
    """`rounds[r][engine]` are the engine's lines in round r, `limits[r]` the machine's in it, if they were measured.
    `models` says which file or folder each engine read; `interpreter_mib` is a rank's process before it has a model,
    and `others_cores` how many cores others used at most, just before an engine ran."""

    rounds: Sequence[dict[str, list[Line]]]
    limits: Sequence[Line]
    models: dict[str, Path]
    interpreter_mib: float
    others_cores: float

    @property
    def engines(self) -> list[str]:
        return list(self.models)

    def value(self, engine: str, workload: str, key: str = "tokens_per_s") -> float:
        """The median over the rounds."""
        return median(self.each(engine, workload, key))

    def ratio(self, engine: str, other: str, workload: str) -> float:
        """The median over the rounds of one engine's rate over another's in the same round."""
        pairs = zip(self.each(engine, workload), self.each(other, workload), strict=True)
        return median(own / base for own, base in pairs)

    def peak_mib(self, engine: str) -> float:
        return median(_one(lines, "peak_mib") for lines in self._lines(engine))

    def read_share(self, engine: str) -> float:
        """Of the memory's bandwidth in the same round, in decoding."""
        need = decode_bytes(self.models[engine]) / 1e9
        return self._share(engine, "decode", [limit["read_gb_s"] / need for limit in self.limits])

    def product_share(self, engine: str) -> float:
        """Of the best bfloat16 product's rate in the same round, in reading a prompt."""
        need = prefill_operations(model_of(self.models[engine]), _PROMPT) / _PROMPT / 1e9
        return self._share(engine, "prefill", [limit["bf16_gflop_s"] / need for limit in self.limits])

    def best_peer(self, workload: str) -> str | None:
        peers = [engine for engine in self.engines if engine in _PEERS]
        return max(peers, key=lambda engine: self.value(engine, workload), default=None)

    def _lines(self, engine: str) -> list[list[Line]]:
        return [lines[engine] for lines in self.rounds]

    def each(self, engine: str, workload: str, key: str = "tokens_per_s") -> list[float]:
        """Of every round, the median over its repetitions."""
        return [
            median(line[key] for line in lines if line.get("workload") == workload) for lines in self._lines(engine)
        ]

    def _share(self, engine: str, workload: str, most: Sequence[float]) -> float:
        return median(own / limit for own, limit in zip(self.each(engine, workload), most, strict=True))


def figures(measured: Measured) -> str:
    """Every engine's figures, as a table."""
    rows = [
        "| engine | decode tok/s | TPOT ms | of the read limit | prefill tok/s | TTFT of 1024 ms | of the bf16 limit | "
        "32 × (128+64) tok/s | control plane (1 / 32 / 64) | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for engine in measured.engines:
        rate = [measured.value(engine, workload.name) for workload in WORKLOADS]
        tpot, ttft = measured.value(engine, "decode", "tpot_s"), measured.value(engine, "prefill", "ttft_s")
        shares = "–"
        if engine.startswith(OWN):
            kinds = ("decode", "batch", "batch64")
            shares = " / ".join(f"{measured.value(engine, kind, 'control_share'):.1%}" for kind in kinds)
        rows.append(
            f"| {engine} | {rate[0]:.1f} | {tpot * 1000:.1f} | {measured.read_share(engine):.0%} | "
            f"{rate[1]:.0f} | {ttft * 1000:.0f} | {measured.product_share(engine):.0%} | "
            f"{rate[2]:.0f} | {shares} | {measured.peak_mib(engine):,.0f} |"
        )
    read, product = (median(limit[key] for limit in measured.limits) for key in ("read_gb_s", "bf16_gflop_s"))
    rows.append(
        f"\nThe machine meanwhile: {read:.1f} GB/s read, {product:.0f} GFLOP/s in bf16 products. "
        f"A rank's process without a model: {measured.interpreter_mib:.0f} MiB. "
        f"Other programs used up to {measured.others_cores:.1f} cores."
    )
    if measured.others_cores > _IDLE_CORES:
        rows.append("\n**The machine was not idle: repeat this before quoting it.**")
    return "\n".join(rows)


def verdicts(measured: Measured) -> list[Verdict]:
    """The targets that the engines of this comparison can tell."""
    found: list[Verdict] = []

    def against(work: str, engine: str, other: str | None, workload: str, at_least: float) -> None:
        if other is not None and {engine, other} <= set(measured.engines):
            ratio = measured.ratio(engine, other, workload)
            found.append(Verdict(f"{work} / {other}", ratio, at_least=at_least))

    def rated(work: str, engine: str, measured_share: float, at_least: float) -> None:
        found.append(Verdict(f"{work} ({engine})", measured_share, at_least=at_least, unit="%"))

    best = {workload.name: measured.best_peer(workload.name) for workload in WORKLOADS}
    has = set(measured.engines)
    complete = bool(measured.limits)  # of engines that took turns rates alone are known
    against("decode, bf16", OWN, best["decode"], "decode", 1.3)
    if OWN in has and complete:
        rated("decode, bf16: share of the read bandwidth", OWN, measured.read_share(OWN), 0.65)
    against("prefill 1024, bf16", OWN, best["prefill"], "prefill", 1.3)
    if OWN in has and complete:
        rated("prefill 1024, bf16: share of the bf16 product's rate", OWN, measured.product_share(OWN), 0.8)
    against("32 concurrent, bf16", OWN, best["batch"], "batch", 1.3)
    against("decode, Q8_0", OWN_INT8, LLAMA_INT8, "decode", 1.5)
    against("decode, Q4_1", OWN_4BIT, LLAMA_4BIT, "decode", 1.5)
    against("32 concurrent, Q8_0", OWN_INT8, best["batch"], "batch", 2.0)
    against("32 concurrent, W8A8", OWN_W8A8, best["batch"], "batch", 2.0)
    against("32 concurrent, W8A8, int8 KV cache", OWN_W8A8_CACHE8, best["batch"], "batch", 2.0)
    against("32 concurrent, Q8_0", OWN_INT8, LLAMA_INT8, "batch", 3.0)
    against("32 concurrent, W8A8", OWN_W8A8, LLAMA_INT8, "batch", 3.0)
    against("tp=2, decode", TP2, OWN, "decode", 0.9)
    against("tp=2, 32 concurrent", TP2, OWN, "batch", 0.9)
    against("pp=2, 32 concurrent", PP2, OWN, "batch", 0.9)
    if OWN in has and complete:
        for workload, size in (("decode", 1), ("batch64", 64)):
            share = measured.value(OWN, workload, "control_share")
            found.append(Verdict(f"control plane, batch {size} ({OWN})", share, at_most=0.05, unit="%"))
    if {OWN, TP2} <= has and complete:
        more = (measured.peak_mib(TP2) - measured.interpreter_mib) / measured.peak_mib(OWN)
        found.append(Verdict(f"peak memory: (tp=2 − one interpreter) / {OWN}", more, at_most=1.15))
    return found


def _one(lines: Sequence[Line], key: str) -> float:
    return next(float(line[key]) for line in lines if key in line)
