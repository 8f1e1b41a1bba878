"""The findings for eyes, and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cluster.doctor.diagnosis import Place

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def healthy(places: Sequence[Place]) -> bool:
    """Whether nothing has failed."""
    return all(finding.level != "failed" for place in places for finding in place.findings)


def report_table(places: Sequence[Place]) -> Group:
    return Group(
        *(part for place in places for part in (Text(f"\n{place.name}", style="bold"), _table(place))), _sum(places)
    )


def report_json(places: Sequence[Place]) -> str:
    """`version` counts the forms of this document; within one, keys are added alone."""
    findings = [{"where": place.name, **asdict(finding)} for place in places for finding in place.findings]
    return json.dumps({"version": 1, "ok": healthy(places), "findings": findings}, indent=2, ensure_ascii=False)


def _table(place: Place) -> Table:
    table = Table.grid(padding=(0, 2))
    for finding in place.findings:
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="italic")
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.check, text)
    return table


def _sum(places: Sequence[Place]) -> Text:
    count = Counter(finding.level for place in places for finding in place.findings)
    return Text(f"\n{count['ok']} ok, {count['warning']} warnings, {count['failed']} failed", style="bold")
