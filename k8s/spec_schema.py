"""Writes the spec's keys into the chart's values.schema.json, so that Helm refuses what `phalanx serve` would.

Run it after a change of DeploymentSpec: python -m k8s.spec_schema
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.spec import DeploymentSpec

SCHEMA = Path(__file__).parent / "phalanx/values.schema.json"
# Where gateways, registry and metrics listen, and who may reach them, is for the chart's own values to say.
_FIXED = (
    "listen",
    "registry_listen",
    "registry_secret",
    "internal_tls",
    "tls",
    "tokens",
    "insecure",
    "metrics_address",
    "coordinator_metrics_address",
)


def spec_schema() -> dict[str, Any]:
    """The JSON schema of the chart's `spec`."""
    schema = DeploymentSpec.model_json_schema()
    for key in _FIXED:
        schema["properties"].pop(key, None)
    schema["properties"]["model"]["minLength"] = 1
    used = json.dumps(schema["properties"])
    schema["$defs"] = {name: part for name, part in schema.get("$defs", {}).items() if f"#/$defs/{name}" in used}
    return schema


def with_spec(whole: dict[str, Any]) -> dict[str, Any]:
    """The schema of all values, with the spec of today."""
    schema = spec_schema()
    return {**whole, "$defs": {**whole["$defs"], **schema.pop("$defs"), "spec": schema}}


def main() -> None:
    whole = json.loads(SCHEMA.read_text(encoding="utf-8"))
    SCHEMA.write_text(json.dumps(with_spec(whole), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
