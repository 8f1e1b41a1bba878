"""The chart as Helm renders it, and the pods in what it renders."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.helm import helm

CHART = Path(__file__).resolve().parents[2] / "k8s/phalanx"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
RELEASE = "llm"
NAMESPACE = "models"

# With these every part of the chart that is off by itself is there.
EVERYTHING = (
    "serviceAccountName=phalanx", "imagePullSecrets[0].name=pull", "extraEnv[0].name=A", "extraEnv[0].value=b",
    "ray.autoscaling.enabled=true", "ray.gcsFaultTolerance.redisAddress=redis:6379",
    "gateway.autoscaling.enabled=true", "ray.head.priorityClassName=high", "gateway.podAnnotations.note=x",
    "spec.log_format=json", "spec.traces=http://collector:4317",
    "security.internalTls.existingSecret=inside", "metrics.enabled=true", "metrics.serviceMonitor.enabled=true",
    "metrics.serviceMonitor.labels.release=prometheus", "metrics.prometheusRule.enabled=true",
    "metrics.dashboard.enabled=true", "gateway.autoscaling.targetStreams=400",
)  # fmt: skip


@dataclass(frozen=True)
class Pod:
    """A pod that an object makes: `component` names what it is for."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All of them, those that run before the others too."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def template(values: Path | None, *settings: str, kubernetes: str = "1.34") -> subprocess.CompletedProcess[str]:
    """`helm template` with a file of values and some more as KEY=VALUE; it may fail."""
    command = [str(helm()), "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", kubernetes]
    command += [] if values is None else ["--values", str(values)]
    command += [f"{_flag(setting)}={setting}" for setting in settings]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _flag(setting: str) -> str:
    """Numbers, lists and null are given as JSON; `--set` would take 1.5 for a text."""
    try:
        json.loads(setting.partition("=")[2])
    except ValueError:
        return "--set"
    return "--set-json"


@cache
def rendered(values: Path, *settings: str, kubernetes: str = "1.34") -> tuple[dict[str, Any], ...]:
    """The objects of a release."""
    done = template(values, *settings, kubernetes=kubernetes)
    assert done.returncode == 0, done.stderr
    return tuple(item for item in yaml.safe_load_all(done.stdout) if item)


def named(objects: tuple[dict[str, Any], ...], kind: str, name: str) -> dict[str, Any]:
    """The only object of that kind and name."""
    (found,) = (item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name)
    return found


def pods(objects: tuple[dict[str, Any], ...]) -> Iterator[Pod]:
    """One of each kind of pod that the objects make."""
    for item in objects:
        owner = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] == "Pod":
            yield Pod(owner, item["metadata"]["labels"], item["spec"])
        elif item["kind"] in ("Deployment", "Job"):
            yield _pod(owner, item["spec"]["template"])
        elif item["kind"] == "RayCluster":
            yield _pod(f"{owner}/head", item["spec"]["headGroupSpec"]["template"])
            for group in item["spec"]["workerGroupSpecs"]:
                yield _pod(f"{owner}/{group['groupName']}", group["template"])


def _pod(owner: str, made: dict[str, Any]) -> Pod:
    return Pod(owner, made["metadata"]["labels"], made["spec"])
