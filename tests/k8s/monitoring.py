"""What the chart uses of the Prometheus operator's objects, and what it asks Prometheus for."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.rendering import CHART, EXAMPLES, NAMESPACE, RELEASE, named, rendered

DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
_LAPTOP = next(path for path in EXAMPLES if path.stem == "laptop")
_MONITORED = ("metrics.enabled=true", "metrics.prometheusRule.enabled=true")


def _closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": [*properties], "properties": properties}


def _object(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _closed(
        apiVersion={"const": f"monitoring.coreos.com/{version}"}, kind={"const": kind}, metadata={}, spec=spec
    )


_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_DURATION = {"type": "string", "pattern": r"^(\d+(ms|[smhdwy]))+$"}
_RULE = _closed(alert=_TEXT, expr=_TEXT, labels=_TEXTS, annotations=_TEXTS, **{"for": _DURATION})
_RULE |= {"required": ["alert", "expr", "labels", "annotations"]}

# As the operator's reference describes the fields that the chart uses.
MONITORING = {
    "ServiceMonitor": _object(
        "v1",
        "ServiceMonitor",
        _closed(
            selector=_closed(matchLabels=_TEXTS),
            endpoints={
                "type": "array",
                "items": _closed(
                    port=_TEXT,
                    interval=_DURATION,
                    relabelings={"type": "array", "items": _closed(targetLabel=_TEXT, replacement=_TEXT)},
                ),
            },
        ),
    ),
    "ScrapeConfig": _object(
        "v1alpha1",
        "ScrapeConfig",
        _closed(
            scrapeInterval=_DURATION,
            staticConfigs={
                "type": "array",
                "items": _closed(targets={"type": "array", "items": _TEXT, "minItems": 1}, labels=_TEXTS),
            },
        ),
    ),
    "PrometheusRule": _object(
        "v1",
        "PrometheusRule",
        _closed(groups={"type": "array", "items": _closed(name=_TEXT, rules={"type": "array", "items": _RULE})}),
    ),
}


@functools.cache
def rules(*settings: str) -> dict[str, Any]:
    """The rule groups of a release, as Prometheus reads them."""
    return dict(named(rendered(_LAPTOP, *_MONITORED, *settings), "PrometheusRule", "llm")["spec"])


@functools.cache
def expressions() -> dict[str, list[str]]:
    """All of alerts and dashboards, by whose they are; Grafana's variables are filled in."""
    found = {rule["alert"]: [rule["expr"]] for rule in alerts()}
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            found[f"{file.stem}: {panel['title']}"] = [_filled(line["expr"]) for line in panel.get("targets", [])]
    return found


def _filled(expression: str) -> str:
    chosen = {
        "$namespace": NAMESPACE,
        "$deployment": RELEASE,
        "$replica": ".*",
        "$tenant": ".*",
        "$__rate_interval": "1m",
    }
    for variable, value in chosen.items():
        expression = expression.replace(variable, value)
    return expression


def metric_of(series: str) -> str:
    """The metric that a series is of, as docs/metrics.md names it: histograms have series of three kinds."""
    return re.sub("_(bucket|sum|count)$", "", series)


def alerts() -> list[dict[str, Any]]:
    """The rules of all groups."""
    return [rule for group in rules()["groups"] for rule in group["rules"]]


def written(folder: Path, groups: dict[str, Any]) -> Path:
    """A file of rules."""
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump(groups, sort_keys=False))
    return file
