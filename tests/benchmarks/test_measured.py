"""Tables and verdicts of a comparison, from figures that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import measured as names
from benchmarks.measured import Line, Measured, figures, verdicts
from benchmarks.verdict import Verdict
from benchmarks.work import decode_bytes, model_of, prefill_operations
from benchmarks.workload import WORKLOADS
from tests.tiny_models import make_tiny


def _lines(rate: float, control_share: float | None = None) -> list[Line]:
    """An engine that is as quick at everything, except that one repetition met a busy machine."""
    own = {} if control_share is None else {"control_share": control_share}
    kinds = [workload.name for workload in WORKLOADS] + ([] if control_share is None else ["batch64"])
    lines: list[Line] = [
        {"workload": kind, "ttft_s": 0.5, "tpot_s": 0.01, "tokens_per_s": value, **own}
        for kind in kinds
        for value in (rate, rate, rate / 10)
    ]
    return [*lines, {"peak_mib": 100.0}]


def _measured(
    model: Path, rates: dict[str, tuple[float, ...]], control_share: float = 0.04, others_cores: float = 0.0
) -> Measured:
    rounds = [
        {name: _lines(each[r], control_share if name.startswith(names.OWN) else None) for name, each in rates.items()}
        for r in range(3)
    ]
    limits: list[Line] = [{"read_gb_s": 10.0, "bf16_gflop_s": 100.0}] * 3
    return Measured(rounds, limits, dict.fromkeys(rates, model), interpreter_mib=20.0, others_cores=others_cores)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model"), "llama")


def test_ratios_are_taken_within_a_round(model: Path) -> None:
    # The machine was three times as slow in the second round, for both.
    measured = _measured(model, {names.OWN: (200.0, 66.0, 220.0), names.VLLM: (100.0, 30.0, 100.0)})
    assert measured.ratio(names.OWN, names.VLLM, "decode") == pytest.approx(2.2)
    assert measured.value(names.OWN, "decode") == 200.0


def test_the_best_peer_is_the_one_to_beat(model: Path) -> None:
    rates = {names.OWN: (140.0,) * 3, names.VLLM: (50.0,) * 3, names.LLAMA: (100.0,) * 3}
    found = {verdict.work: verdict for verdict in verdicts(_measured(model, rates))}
    decode = found[f"decode, bf16 / {names.LLAMA}"]
    assert decode.met
    assert decode.measured == pytest.approx(1.4)
    assert not any(names.VLLM in work for work in found)


def test_engines_that_did_not_run_have_no_verdict(model: Path) -> None:
    works = [verdict.work for verdict in verdicts(_measured(model, {names.TP2: (1.0,) * 3, names.VLLM: (1.0,) * 3}))]
    assert works == []


def test_a_costly_control_plane_is_not_met(model: Path) -> None:
    for share, met in ((0.04, True), (0.06, False)):
        measured = _measured(model, {names.OWN: (1.0,) * 3}, control_share=share)
        control = [verdict.met for verdict in verdicts(measured) if "control plane" in verdict.work]
        assert control == [met, met]


def test_memory_of_two_ranks_counts_one_interpreter_less(model: Path) -> None:
    measured = _measured(model, {names.OWN: (1.0,) * 3, names.TP2: (1.0,) * 3})
    (memory,) = [verdict for verdict in verdicts(measured) if "memory" in verdict.work]
    assert memory.measured == pytest.approx(0.8)


def test_every_engine_has_a_row(model: Path) -> None:
    rates = {names.OWN: (140.0,) * 3, names.TRANSFORMERS: (50.0,) * 3}
    rows = [line for line in figures(_measured(model, rates)).splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| Phalanx", "| transformers"]
    assert len({row.count("|") for row in rows}) == 1


def test_figures_of_a_busy_machine_say_so(model: Path) -> None:
    assert "not idle" in figures(_measured(model, {names.OWN: (1.0,) * 3}, others_cores=1.0))
    assert "not idle" not in figures(_measured(model, {names.OWN: (1.0,) * 3}))


def test_work_of_a_token_is_that_of_its_weights(model: Path) -> None:
    spec = model_of(model)
    size = decode_bytes(model) // 2
    assert size > spec.vocab_size * spec.hidden_size
    # One token: two operations for every weight that is read, and its attention to itself.
    itself = 4 * spec.num_layers * spec.num_heads * spec.head_dim
    assert prefill_operations(spec, 1) == 2 * size + itself


def test_a_verdict_has_one_bound() -> None:
    with pytest.raises(ValueError, match="either"):
        Verdict("work", 1.0)
    assert str(Verdict("work", 0.051, at_most=0.05, unit="%")) == "work: 5.1%, target ≤ 5.0%: NOT met"
