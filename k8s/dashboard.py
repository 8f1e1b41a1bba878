"""Writes Grafana's dashboard, k8s/phalanx/dashboards/phalanx.json, from the panels in k8s/panels.py.

Run it after a change of these: python -m k8s.dashboard
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from k8s.panels import ROWS, Panel

FILE = Path(__file__).parent / "phalanx/dashboards/phalanx.json"
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_OF = 'namespace="$namespace",deployment="$deployment"'
_SHORT = {
    "@all": _OF,
    "@tenant": f'{_OF},tenant=~"$tenant"',
    "@replica": f'{_OF},replica=~"$replica"',
    "@window": "$__rate_interval",
}
_ACROSS, _WIDTH, _HEIGHT = 3, 8, 8


def expanded(expression: str) -> str:
    """An expression of panels.py as Grafana reads it."""
    for short, long in _SHORT.items():
        expression = expression.replace(short, long)
    return expression


def _panel(panel: Panel, number: int, left: int, top: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"x": left, "y": top, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {
                    "fillOpacity": 30 if panel.stacked else 5,
                    "stacking": {"mode": "normal" if panel.stacked else "none"},
                },
            },
            "overrides": [],
        },
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": {"displayMode": "list"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": expanded(text), "legendFormat": legend}
            for place, (legend, text) in enumerate(panel.lines.items())
        ],
    }


def _panels() -> Iterator[dict[str, Any]]:
    number = top = 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
            "panels": [],
        }
        top += 1
        for place, panel in enumerate(panels):
            number += 1
            down, across = divmod(place, _ACROSS)
            yield _panel(panel, number, across * _WIDTH, top + down * _HEIGHT)
        top += -(-len(panels) // _ACROSS) * _HEIGHT


def _variable(name: str, metric: str, several: bool) -> dict[str, Any]:
    """A choice among the values of a label."""
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": f"label_values({expanded(metric)}, {name})", "refId": name},
        "refresh": 2,
        "sort": 3,
        **({"multi": True, "includeAll": True, "allValue": ".*", "current": {"value": "$__all"}} if several else {}),
    }


def dashboard() -> dict[str, Any]:
    """All of it, as Grafana imports it."""
    return {
        "uid": "phalanx",
        "title": "Phalanx",
        "tags": ["phalanx"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"},
                _variable("namespace", "phalanx_build_info", False),
                _variable("deployment", 'phalanx_build_info{namespace="$namespace"}', False),
                _variable("replica", "phalanx_kv_blocks{@all}", True),
                _variable("tenant", "phalanx_request_duration_seconds_count{@all}", True),
            ]
        },
        "panels": list(_panels()),
    }


def written() -> str:
    """The text of the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
