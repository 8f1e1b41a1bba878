"""What Prometheus would fetch."""

from __future__ import annotations

import asyncio
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


class Scraped:
    """The samples of one look at an endpoint's text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Of the sample with exactly these labels. Raises KeyError: there is none."""
        return self._samples[name, frozenset(labels.items())]

    def labels(self, name: str) -> list[Labels]:
        """Of all its samples."""
        return [labels for found, labels in self._samples if found == name]

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples that have these labels among others."""
        wanted = set(labels.items())
        return sum(value for (found, own), value in self._samples.items() if found == name and wanted <= own)


async def scrape(address: str) -> Scraped:
    return Scraped(await asyncio.to_thread(lambda: urlopen(f"http://{address}/metrics", timeout=30).read().decode()))
