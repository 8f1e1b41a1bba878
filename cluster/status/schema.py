"""Writes the JSON Schema of `phalanx status --json`. Run it after a change of the document:
python -m cluster.status.schema
"""

from __future__ import annotations

import json
from pathlib import Path

from cluster.status.document import Status

FILE = Path(__file__).resolve().parents[2] / "docs/status.schema.json"


def schema_text() -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Status.model_json_schema(mode="serialization"),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(schema_text(), encoding="utf-8")
