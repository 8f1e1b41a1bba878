"""What the pods run is what the product understands: its own command line and Ray's take every word of it."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from ray.dashboard.modules.job.cli import submit
from ray.scripts.scripts import start

from cluster.cli import app
from cluster.spec import DeploymentSpec
from tests.k8s.command_line import understood
from tests.k8s.rendering import EVERYTHING, EXAMPLES, Pod, named, pods, rendered

_SUBMIT = re.compile(r"^ray job submit (.*?) -- (.*?) & wait", re.MULTILINE)

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


def _words(container: dict[str, Any]) -> list[str]:
    return [*container.get("command", []), *container.get("args", [])]


def _commands(pod: Pod) -> Iterator[list[str]]:
    """Every call of `phalanx` in a pod, by itself or as a job."""
    for container in pod.containers:
        words = _words(container)
        if words[:1] == ["phalanx"]:
            yield words
        elif words[:1] == ["/bin/sh"]:
            (job,) = _SUBMIT.findall(words[-1])
            yield shlex.split(job[1])


@each_example
def test_every_call_of_phalanx_is_understood(example: Path) -> None:
    calls = [call for pod in pods(rendered(example, *EVERYTHING)) for call in _commands(pod)]
    assert {call[1] for call in calls} >= {"serve", "gateway", "ask"}
    for call in calls:
        understood(typer.main.get_command(app), call)


def test_an_unknown_option_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        understood(typer.main.get_command(app), ["phalanx", "gateway", "--registry=x:1", "--no-such-option"])


@each_example
def test_every_job_is_one_that_ray_understands(example: Path) -> None:
    scripts = [_words(c)[-1] for pod in pods(rendered(example)) for c in pod.containers if _words(c)[:1] == ["/bin/sh"]]
    assert scripts
    for script in scripts:
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)
        ((options, _),) = _SUBMIT.findall(script)
        submit.make_context("submit", [*shlex.split(options), "--", "x"])


@each_example
def test_ray_understands_what_its_nodes_are_started_with(example: Path) -> None:
    for item in rendered(example):
        if item["kind"] == "RayCluster":
            groups = [item["spec"]["headGroupSpec"], *item["spec"]["workerGroupSpecs"]]
            for group in groups:
                start.make_context("start", [f"--{key}={value}" for key, value in group["rayStartParams"].items()])


@each_example
def test_the_spec_is_one_that_phalanx_serves_and_has_every_key_of_the_values(example: Path, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(named(rendered(example), "ConfigMap", "llm-spec")["data"]["spec.yaml"])
    added = {
        "name": "llm",
        "wait_for_devices": "10m",
        "registry_listen": ":20052",
        "registry_secret": "registry-secret",
    }
    values = yaml.safe_load(example.read_text())
    if values.get("metrics", {}).get("enabled"):
        added["coordinator_metrics_address"] = ":20053"
    assert DeploymentSpec.read(file) == DeploymentSpec.of({**added, **values["spec"]})


@each_example
def test_gateways_find_the_registry_where_the_spec_has_it_listen(example: Path) -> None:
    asked = {"max_sequences": 7_000_000, "recovery_s": 8.5, "send_timeout_s": 77.5, "drain_s": 90.5}
    objects = rendered(example, *(f"spec.{name}={value}" for name, value in asked.items()))
    spec = yaml.safe_load(named(objects, "ConfigMap", "llm-spec")["data"]["spec.yaml"])
    (gateway,) = (pod for pod in pods(objects) if pod.component == "gateway")
    (call,) = (call for call in _commands(gateway) if call[1] == "gateway")
    options = understood(typer.main.get_command(app), call)
    host, _, port = options["registry"].partition(":")
    assert spec["registry_listen"] == f":{port}"
    assert {name: options[name] for name in asked} == asked
    if services := [item for item in objects if item["kind"] == "Service" and item["metadata"]["name"] == host]:
        assert {entry["name"]: entry["port"] for entry in services[0]["spec"]["ports"]}["registry"] == int(port)
    else:
        assert host == yaml.safe_load(example.read_text())["ray"]["registryHost"]
    # Time to leave the service, to drain, and to answer the last.
    assert gateway.spec["terminationGracePeriodSeconds"] == 5 + 91 + 15


@each_example
def test_probes_ask_where_the_gateway_answers_them(example: Path) -> None:
    (gateway,) = (pod for pod in pods(rendered(example)) if pod.component == "gateway")
    (container,) = gateway.spec["containers"]
    options = understood(typer.main.get_command(app), _words(container))
    probes = {kind: container[f"{kind}Probe"]["grpc"] for kind in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {int(options["probe_listen"].partition(":")[2])}
    assert probes["readiness"]["service"] == "phalanx.v1.Inference"
    # A gateway that waits for replicas is not one to restart.
    assert probes["startup"]["service"] == probes["liveness"]["service"] == "liveness"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["grpc"] == int(options["listen"].partition(":")[2])


def test_the_grace_period_without_drain_s_is_that_of_the_products_default() -> None:
    (gateway,) = (pod for pod in pods(rendered(EXAMPLES[0])) if pod.component == "gateway")
    assert gateway.spec["terminationGracePeriodSeconds"] == 5 + DeploymentSpec(model="x").drain_s + 15


def test_a_change_of_the_spec_is_another_driver_pod() -> None:
    def driver(*settings: str) -> Any:
        return named(rendered(EXAMPLES[0], *settings), "Deployment", "llm-driver")["spec"]["template"]

    assert driver() == driver("gateway.replicas=9")
    assert driver() != driver("spec.max_running=9")


def test_a_change_of_the_spec_or_of_the_chart_leaves_ray_pods_and_gateways_alone() -> None:
    """KubeRay's Recreate ends all pods when a template changes."""
    before = rendered(EXAMPLES[0])
    after = rendered(EXAMPLES[0], "spec.max_running=9", "driver.registryTimeoutSeconds=99")
    for kind, name in (("RayCluster", "llm"), ("Deployment", "llm-gateway")):
        assert named(before, kind, name) == named(after, kind, name)
    for pod in pods(before):
        if pod.component in ("ray", "gateway"):
            assert not {"app.kubernetes.io/version", "helm.sh/chart"} & pod.labels.keys()
