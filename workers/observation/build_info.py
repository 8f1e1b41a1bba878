"""Which Phalanx a process runs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


def version_of_phalanx() -> str:
    """As installed; `ray job submit --working-dir` ships the code without installing it."""
    try:
        return version("phalanx-inference")
    except PackageNotFoundError:
        return "not installed"


class BuildInfo(Collector):
    """The version as a label of a metric that is 1."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "phalanx_build_info", "Always 1; its label is the version of Phalanx that runs.", labels=["version"]
        )
        family.add_metric([version_of_phalanx()], 1)
        yield family
