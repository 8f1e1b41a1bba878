"""Prometheus finds what shows metrics and may connect to it, and gateways scale by a metric that there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.monitoring import DASHBOARDS
from tests.k8s.rendering import CHART, EVERYTHING, EXAMPLES, named, pods, rendered, template

_LAPTOP = next(path for path in EXAMPLES if path.stem == "laptop")
_GUIDE = CHART.parents[1] / "docs/kubernetes.md"
_ON = "metrics.enabled=true"
_PORT = 20053
_STREAMS, _NO_CPU = "gateway.autoscaling.targetStreams=400", "gateway.autoscaling.targetCPUUtilizationPercentage=0"

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


def _kinds(objects: tuple[dict[str, Any], ...]) -> set[str]:
    return {item["kind"] for item in objects}


def test_by_itself_nothing_is_shown() -> None:
    objects = rendered(_LAPTOP)
    assert not {"ServiceMonitor", "ScrapeConfig", "PrometheusRule", "HorizontalPodAutoscaler"} & _kinds(objects)
    assert "metrics" not in yaml.safe_load(named(objects, "ConfigMap", "llm-spec")["data"]["spec.yaml"])
    (gateway,) = (pod for pod in pods(objects) if pod.component == "gateway")
    assert not [word for word in gateway.spec["containers"][0]["command"] if "metrics" in word]


@each_example
def test_the_monitor_finds_each_gateway_once(example: Path) -> None:
    objects = rendered(example, *EVERYTHING)
    spec = named(objects, "ServiceMonitor", "llm-gateway")["spec"]
    (endpoint,) = spec["endpoints"]
    found = [
        (item["spec"], port)
        for item in objects
        if item["kind"] == "Service" and spec["selector"]["matchLabels"].items() <= item["metadata"]["labels"].items()
        for port in item["spec"]["ports"]
        if port["name"] == endpoint["port"]
    ]
    ((service, port),) = found
    (gateway,) = (pod for pod in pods(objects) if service["selector"].items() <= pod.labels.items())
    (container,) = gateway.spec["containers"]
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    assert f"--metrics-address=0.0.0.0:{ports[port['targetPort']]}" in container["command"]


@each_example
def test_the_coordinator_is_scraped_where_the_spec_has_it_listen(example: Path) -> None:
    objects = rendered(example, *EVERYTHING)
    (static,) = named(objects, "ScrapeConfig", "llm-coordinator")["spec"]["staticConfigs"]
    (target,) = static["targets"]
    host, _, port = target.partition(":")
    spec = yaml.safe_load(named(objects, "ConfigMap", "llm-spec")["data"]["spec.yaml"])
    assert spec["coordinator_metrics_address"] == f":{port}"
    (gateway,) = (pod for pod in pods(objects) if pod.component == "gateway")
    registry = next(word for word in gateway.spec["containers"][0]["command"] if word.startswith("--registry="))
    # The scraper is in another namespace.
    assert host == f"{registry.partition('=')[2].partition(':')[0]}.models.svc"
    relabelled = named(objects, "ServiceMonitor", "llm-gateway")["spec"]["endpoints"][0]["relabelings"]
    assert {entry["targetLabel"]: entry["replacement"] for entry in relabelled} == {"deployment": "llm"}
    assert static["labels"] == {"namespace": "models", "deployment": "llm"}


def test_a_whole_name_of_a_registry_stays_as_it_is() -> None:
    example = next(path for path in EXAMPLES if path.stem == "existing-ray")
    objects = rendered(example, _ON, "metrics.serviceMonitor.enabled=true", "ray.registryHost=nodes.ray.svc")
    (static,) = named(objects, "ScrapeConfig", "llm-coordinator")["spec"]["staticConfigs"]
    assert static["targets"] == [f"nodes.ray.svc:{_PORT}"]


def _from(objects: tuple[dict[str, Any], ...], policy: str) -> list[Any]:
    """Who may connect to the port of metrics."""
    rules = named(objects, "NetworkPolicy", policy)["spec"]["ingress"]
    return [rule.get("from", "all") for rule in rules if {"port": _PORT} in rule.get("ports", [])]


@pytest.mark.parametrize("policy", ["llm-gateway", "llm-ray"])
def test_scrapers_are_let_in_where_there_are_metrics(policy: str) -> None:
    monitoring = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert _from(rendered(_LAPTOP), policy) == []
    assert _from(rendered(_LAPTOP, _ON), policy) == [monitoring]
    some = [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]
    assert _from(rendered(_LAPTOP, _ON, f"networkPolicy.scrapers={json.dumps(some)}"), policy) == [some]
    assert _from(rendered(_LAPTOP, _ON, "networkPolicy.scrapers=[]"), policy) == ["all"]


def test_metrics_end_no_ray_pod() -> None:
    assert named(rendered(_LAPTOP), "RayCluster", "llm") == named(rendered(_LAPTOP, _ON), "RayCluster", "llm")


def test_the_sidecar_gets_the_dashboards() -> None:
    objects = rendered(_LAPTOP, _ON, "metrics.dashboard.enabled=true", "metrics.dashboard.labels.team=x")
    config = named(objects, "ConfigMap", "llm-dashboard")
    assert config["metadata"]["labels"].items() >= {"grafana_dashboard": "1", "team": "x"}.items()
    assert config["data"] == {path.name: path.read_text() for path in DASHBOARDS}


def _autoscaler(*settings: str) -> dict[str, Any]:
    objects = rendered(_LAPTOP, _ON, "gateway.autoscaling.enabled=true", *settings)
    assert "replicas" not in named(objects, "Deployment", "llm-gateway")["spec"]
    return dict(named(objects, "HorizontalPodAutoscaler", "llm-gateway")["spec"])


def test_gateways_scale_by_what_is_asked_for() -> None:
    assert [metric["type"] for metric in _autoscaler()["metrics"]] == ["Resource"]
    assert [metric["type"] for metric in _autoscaler(_STREAMS)["metrics"]] == ["Pods", "Resource"]
    (by_streams,) = _autoscaler(_STREAMS, _NO_CPU)["metrics"]
    assert by_streams["pods"]["target"] == {"type": "AverageValue", "averageValue": "400"}


def test_the_guides_rule_of_the_adapter_makes_the_metric_that_gateways_scale_by() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", _GUIDE.read_text(), re.DOTALL)
    (adapter,) = (block for block in map(yaml.safe_load, blocks) if "custom" in block.get("rules", {}))
    (rule,) = adapter["rules"]["custom"]
    metric = _autoscaler(_STREAMS, _NO_CPU)["metrics"][0]["pods"]["metric"]["name"]
    assert rule["seriesQuery"].startswith(f"{metric}{{")
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("metrics.serviceMonitor.enabled=true", "metrics.serviceMonitor: it would have no metrics"),
        ("metrics.prometheusRule.enabled=true", "metrics.prometheusRule: it would have no metrics"),
        ("metrics.dashboard.enabled=true", "metrics.dashboard: it would have no metrics"),
        ("metrics.serviceMonitor.interval=often", "at '/metrics/serviceMonitor/interval'"),
        ("metrics.prometheusRule.objectiveTarget=1", "at '/metrics/prometheusRule/objectiveTarget'"),
        ("spec.metrics_address=0.0.0.0:1", "additional properties 'metrics_address' not allowed"),
    ],
)
def test_a_mistake_is_named(mistake: str, words: str) -> None:
    done = template(_LAPTOP, mistake)
    assert done.returncode != 0
    assert words in done.stderr


def test_an_autoscaler_goes_by_something_that_there_is() -> None:
    on = "gateway.autoscaling.enabled=true"
    done = template(_LAPTOP, on, _STREAMS)
    assert "gateway.autoscaling.targetStreams: the number of streams is a metric" in done.stderr
    done = template(_LAPTOP, on, _NO_CPU)
    assert "gateway.autoscaling: say what it goes by" in done.stderr
