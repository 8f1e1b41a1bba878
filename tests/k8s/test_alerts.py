"""Alerts: each fires when it should, none does without cause, and the runbook has an entry for each."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.monitoring import alerts, rules, written
from tests.k8s.rendering import CHART, NAMESPACE, RELEASE
from tests.prometheus import program

_RUNBOOK = CHART.parents[1] / "docs/runbook.md"
_MINUTES = 100
_ENDED, _OBJECTIVE = "phalanx_request_duration_seconds_count", "phalanx_objective_requests_total"
_REFUSED, _COLLECTIVES = "phalanx_requests_refused_total", "phalanx_rank_collective_seconds_total"
_EPOCHS, _BLOCKS = "phalanx_replica_epochs_total", "phalanx_kv_blocks"

# In promtool's notation: start+growth×minutes. A deployment that works hard, with nothing wrong.
_HEALTHY = {
    f'{_ENDED}{{finish_reason="stop"}}': "0+600x100",
    f'{_ENDED}{{finish_reason="cancelled"}}': "0+90x100",
    f'{_ENDED}{{finish_reason="error"}}': "0+1x100",
    f'{_OBJECTIVE}{{objective="ttft",kept="true"}}': "0+598x100",
    f'{_OBJECTIVE}{{objective="ttft",kept="false"}}': "0+2x100",
    f'{_OBJECTIVE}{{objective="tpot",kept="true"}}': "0+600x100",
    f'{_OBJECTIVE}{{objective="tpot",kept="false"}}': "0+0x100",
    f'{_REFUSED}{{reason="invalid"}}': "0+500x100",
    f'{_REFUSED}{{reason="gateway_full"}}': "0+9x100",
    'phalanx_gateway_replicas{pod="a"}': "2+0x100",
    'phalanx_gateway_replicas{pod="b"}': "0+0x100",
    'phalanx_replicas{state="ready"}': "2+0x100",
    'phalanx_replicas{state="starting"}': "0+0x40 1+0x20 0+0x40",
    f'{_EPOCHS}{{replica="0"}}': "1+0x80 2+0x20",
    f'{_EPOCHS}{{replica="1"}}': "1+0x100",
    f'{_BLOCKS}{{replica="0",state="used"}}': "100+0x100",
    f'{_BLOCKS}{{replica="0",state="cached"}}': "900+0x100",
    f'{_BLOCKS}{{replica="0",state="free"}}': "0+0x100",
    f'{_BLOCKS}{{replica="1",state="used"}}': "1000+0x100",
    f'{_BLOCKS}{{replica="1",state="free"}}': "0+0x100",
    'phalanx_sequences_waiting{replica="0"}': "7+0x100",
    'phalanx_sequences_waiting{replica="1"}': "0+0x100",
    f'{_COLLECTIVES}{{replica="0",rank="0"}}': "0+6x100",
    f'{_COLLECTIVES}{{replica="0",rank="1"}}': "0+12x100",
    f'{_COLLECTIVES}{{replica="1",rank="0"}}': "0+20x100",
    f'{_COLLECTIVES}{{replica="1",rank="1"}}': "0+21x100",
    f'{_COLLECTIVES}{{replica="1",rank="2"}}': "0+0x100",
}
# What is otherwise where an alert fires: the alert, its labels beside severity, and these series.
_CASES: list[tuple[str, dict[str, str], dict[str, str]]] = [
    ("PhalanxStreamErrors", {}, {f'{_ENDED}{{finish_reason="error"}}': "0+15x100"}),
    (
        "PhalanxObjectiveBurnsFast", {"objective": "ttft"},
        {f'{_OBJECTIVE}{{objective="ttft",kept="false"}}': "0+0x88 0+1200x12"},
    ),
    (
        "PhalanxObjectiveBurnsSlowly", {"objective": "tpot"},
        {f'{_OBJECTIVE}{{objective="tpot",kept="false"}}': "0+60x100"},
    ),
    ("PhalanxRefusals", {"reason": "gateway_full"}, {f'{_REFUSED}{{reason="gateway_full"}}': "0+90x100"}),
    ("PhalanxNoReplicaReady", {}, {'phalanx_gateway_replicas{pod="a"}': "2+0x90 0+0x10"}),
    ("PhalanxReplicaRebuildsInALoop", {"replica": "1"}, {f'{_EPOCHS}{{replica="1"}}': "1+0x70 1+0.2x30"}),
    ("PhalanxReplicaMissing", {"state": "failed"}, {'phalanx_replicas{state="failed"}': "0+0x60 1+0x40"}),
    ("PhalanxKvCacheFull", {"replica": "1"}, {'phalanx_sequences_waiting{replica="1"}': "0+0x80 3+0x20"}),
    ("PhalanxStragglingRank", {"replica": "0", "rank": "0"}, {f'{_COLLECTIVES}{{replica="0",rank="1"}}': "0+30x100"}),
    (
        "PhalanxNoGateway", {},
        {'phalanx_gateway_replicas{pod="a"}': "2+0x80", 'phalanx_gateway_replicas{pod="b"}': "0+0x80"},
    ),
    ("PhalanxNoCoordinator", {}, {f'phalanx_replicas{{state="{state}"}}': "2+0x80" for state in ("ready", "starting")}),
]  # fmt: skip
# What looks as bad, and is over, short, or the same for all ranks.
_QUIET = {
    f'{_OBJECTIVE}{{objective="ttft",kept="false"}}': "0+600x40 24000+0x60",
    'phalanx_gateway_replicas{pod="a"}': "2+0x70 0+0x5 2+0x25",
    **{f'{_COLLECTIVES}{{replica="0",rank="{rank}"}}': "0+50x100" for rank in (0, 1)},
}


def _in(deployment: str, series: dict[str, str]) -> list[dict[str, str]]:
    where = f'namespace="{NAMESPACE}",deployment="{deployment}"'
    return [{"series": name.replace("{", f"{{{where},"), "values": values} for name, values in series.items()]


def _test(series: dict[str, str], firing: list[str]) -> dict[str, Any]:
    """That exactly these alerts fire in the end, whatever happens to another deployment."""
    broken = dict.fromkeys(_HEALTHY, "0+0x100") | {f'{_ENDED}{{finish_reason="error"}}': "0+900x100"}
    return {
        "interval": "1m",
        "input_series": _in(RELEASE, series) + _in("another", broken),
        "promql_expr_test": [
            {
                "expr": 'ALERTS{alertstate="firing"}',
                "eval_time": f"{_MINUTES}m",
                "exp_samples": [{"labels": alert, "value": 1} for alert in firing],
            }
        ],
    }


def _fired(name: str, labels: dict[str, str]) -> str:
    (rule,) = (rule for rule in alerts() if rule["alert"] == name)
    found = {"alertname": name, "alertstate": "firing", **rule["labels"], **labels}
    if "absent" in rule["expr"]:
        found |= {"namespace": NAMESPACE, "deployment": RELEASE}
    return f"ALERTS{{{','.join(f'{key}={value!r}' for key, value in found.items())}}}"


def _promtool(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    assert f"{len(alerts())} rules found" in _promtool("check", "rules", str(written(tmp_path, rules())))


def test_each_alert_fires_for_its_cause_alone(tmp_path: Path) -> None:
    assert sorted(name for name, _, _ in _CASES) == sorted(rule["alert"] for rule in alerts())
    tests = [_test({**_HEALTHY, **changed}, [_fired(name, labels)]) for name, labels, changed in _CASES]
    tests += [_test(series, []) for series in (_HEALTHY, {**_HEALTHY, **_QUIET})]
    file = tmp_path / "tests.yaml"
    rule_files = [str(written(tmp_path, rules()))]
    file.write_text(yaml.safe_dump({"rule_files": rule_files, "evaluation_interval": "1m", "tests": tests}))
    _promtool("test", "rules", str(file))


def test_texts_name_labels_that_alerts_have() -> None:
    for name, labels, _ in _CASES:
        (rule,) = (rule for rule in alerts() if rule["alert"] == name)
        texts = rule["annotations"]
        assert set(re.findall(r"\$labels\.(\w+)", texts["summary"] + texts["description"])) <= labels.keys()
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_runbook_has_an_entry_for_each_alert_and_no_other() -> None:
    entries = re.findall(r"^## (Phalanx\w+)$", _RUNBOOK.read_text(), re.MULTILINE)
    assert entries == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


@pytest.mark.parametrize("part", ["What it means", "Confirm", "Do"])
def test_every_entry_says_what_it_means_how_to_confirm_and_what_to_do(part: str) -> None:
    for entry in re.split(r"^## ", _RUNBOOK.read_text(), flags=re.MULTILINE)[1:]:
        if entry.startswith("Phalanx"):
            assert f"**{part}.**" in entry, entry.splitlines()[0]


def test_the_values_set_objective_and_runbook() -> None:
    groups = str(rules("metrics.prometheusRule.objectiveTarget=0.95", "metrics.prometheusRule.runbook=https://wiki/x"))
    assert "14.4 * (1 - 0.95)" in groups
    assert "https://wiki/x#phalanxnogateway" in groups
    assert "$deployment" not in groups
    assert "$target" not in groups
