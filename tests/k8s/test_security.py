"""Pods keep to the restricted profile, and connect to each other only where they have to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.k8s.rendering import EVERYTHING, EXAMPLES, Pod, named, pods, rendered

_LAPTOP = next(path for path in EXAMPLES if path.stem == "laptop")
_SAFE_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected"}
_JOBS, _REGISTRY, _GATEWAY, _REPLICA = 8265, 20052, 50051, 40000
_RAY_ONLY = (6379, 6380, 6381, 6382, 6383, 6384, 8080, 10001, 15000)

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


@each_example
@pytest.mark.parametrize("settings", [(), EVERYTHING], ids=["as it is", "everything on"])
def test_every_pod_keeps_to_the_restricted_profile(example: Path, settings: tuple[str, ...]) -> None:
    for pod in pods(rendered(example, *settings)):
        spec = pod.spec
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), pod.owner
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in spec["volumes"]:
            assert volume.keys() - {"name"} <= _SAFE_VOLUMES, f"{pod.owner}: {volume}"
        for container in pod.containers:
            _check_restricted(container["securityContext"])
            assert not [port for port in container.get("ports", []) if "hostPort" in port]
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert {"/tmp", "/home/phalanx"} <= mounts.keys(), f"{pod.owner} can write nowhere"


def _check_restricted(context: dict[str, Any]) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in context


def test_only_an_autoscaling_head_speaks_to_the_api_server() -> None:
    objects = rendered(_LAPTOP, "ray.autoscaling.enabled=true")
    assert [pod.owner for pod in pods(objects) if pod.spec.get("automountServiceAccountToken", True)] == [
        "RayCluster/llm/head"
    ]
    assert all(pod.spec["automountServiceAccountToken"] is False for pod in pods(rendered(_LAPTOP)))
    _check_restricted(named(objects, "RayCluster", "llm")["spec"]["autoscalerOptions"]["securityContext"])


def test_rays_token_goes_to_those_who_speak_to_ray_and_to_nobody_else() -> None:
    for settings, secret in (((), "llm-ray"), (("ray.auth.existingSecret=mine",), "mine")):
        objects = rendered(_LAPTOP, *settings)
        for pod in pods(objects):
            for container in pod.spec["containers"]:
                environment = {entry["name"]: entry for entry in container.get("env", [])}
                if pod.component in ("ray", "driver"):
                    assert environment["RAY_AUTH_MODE"]["value"] == "token"
                    reference = {"name": secret, "key": "auth_token"}
                    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == reference
                else:
                    assert "RAY_AUTH_TOKEN" not in environment
        secrets = [item["metadata"]["name"] for item in objects if item["kind"] == "Secret"]
        assert secrets == (["llm-registry"] if settings else ["llm-ray", "llm-registry"])


def test_two_installations_have_different_tokens_and_secrets() -> None:
    for name, key in (("llm-ray", "auth_token"), ("llm-registry", "secret")):
        first = named(rendered(_LAPTOP), "Secret", name)["data"][key]
        again = named(rendered(_LAPTOP, "spec.max_running=3"), "Secret", name)["data"][key]
        assert len(first) == 64
        assert first != again


@pytest.fixture(scope="module")
def by_component() -> dict[str, Pod]:
    return {pod.component: pod for pod in pods(rendered(_LAPTOP))}


def _reaches(objects: tuple[dict[str, Any], ...], source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether the policies let a pod of the namespace with labels `source` connect to `target`."""
    policies = [item["spec"] for item in objects if item["kind"] == "NetworkPolicy"]
    mine = [policy for policy in policies if _selects(policy["podSelector"], target)]
    return not mine or any(
        any("podSelector" in peer and _selects(peer["podSelector"], source) for peer in rule["from"])
        if "from" in rule
        else True
        for policy in mine
        for rule in policy["ingress"]
        if "ports" not in rule or any(p["port"] <= port <= p.get("endPort", p["port"]) for p in rule["ports"])
    )


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def test_nobody_but_ray_reaches_rays_ports(by_component: dict[str, Pod]) -> None:
    objects = rendered(_LAPTOP)
    ray = by_component["ray"].labels
    for port in (*_RAY_ONLY, _JOBS, _REGISTRY, _REPLICA):
        assert _reaches(objects, ray, ray, port)
        assert not _reaches(objects, {"app": "stranger"}, ray, port)
        assert not _reaches(objects, by_component["test"].labels, ray, port)
    for port in _RAY_ONLY:
        assert not _reaches(objects, by_component["gateway"].labels, ray, port)
        assert not _reaches(objects, by_component["driver"].labels, ray, port)


def test_gateways_reach_registry_and_replicas_and_the_driver_hands_over_jobs(by_component: dict[str, Pod]) -> None:
    objects = rendered(_LAPTOP)
    ray, gateway, driver = (by_component[name].labels for name in ("ray", "gateway", "driver"))
    assert [_reaches(objects, gateway, ray, port) for port in (_REGISTRY, _REPLICA, _JOBS)] == [True, True, False]
    assert [_reaches(objects, driver, ray, port) for port in (_REGISTRY, _REPLICA, _JOBS)] == [True, False, True]


def test_clients_reach_the_gateways_service_and_nothing_else(by_component: dict[str, Pod]) -> None:
    gateway, test = by_component["gateway"].labels, by_component["test"].labels
    stranger = {"app": "stranger"}
    objects = rendered(_LAPTOP)
    assert _reaches(objects, stranger, gateway, _GATEWAY)
    assert not _reaches(objects, stranger, gateway, 50053)
    assert not _reaches(objects, stranger, by_component["driver"].labels, _GATEWAY)
    some = rendered(_LAPTOP, 'networkPolicy.clients=[{"podSelector": {"matchLabels": {"app": "friend"}}}]')
    assert not _reaches(some, stranger, gateway, _GATEWAY)
    assert _reaches(some, {"app": "friend"}, gateway, _GATEWAY)
    assert _reaches(some, test, gateway, _GATEWAY)
    assert _reaches(rendered(_LAPTOP, "networkPolicy.clients=[]"), stranger, gateway, _GATEWAY)


@each_example
def test_rays_fixed_ports_are_none_that_gateways_may_connect_to(example: Path) -> None:
    for item in rendered(example):
        if item["kind"] == "RayCluster":
            head = item["spec"]["headGroupSpec"]
            (container,) = head["template"]["spec"]["containers"]
            ports = [port["containerPort"] for port in container["ports"]]
            ports += [int(value) for key, value in head["rayStartParams"].items() if key.endswith("-port")]
            assert {6379, _JOBS, 10001, _REGISTRY, 19999} <= set(ports)
            assert max(ports) < 32768
            for group in item["spec"]["workerGroupSpecs"]:
                assert {**head["rayStartParams"], **group["rayStartParams"]} == head["rayStartParams"]


@each_example
def test_services_and_budgets_find_the_pods_they_mean(example: Path) -> None:
    objects = rendered(example, *EVERYTHING)
    found = list(pods(objects))
    wanted = {"llm": "gateway", "llm-headless": "gateway", "llm-registry": "ray", "llm-gateway": "gateway"}
    for item in objects:
        if item["kind"] not in ("Service", "PodDisruptionBudget"):
            continue
        selector = item["spec"]["selector"]
        chosen = [pod for pod in found if selector.get("matchLabels", selector).items() <= pod.labels.items()]
        assert {pod.component for pod in chosen} == {wanted[item["metadata"]["name"]]}
        for port in item["spec"].get("ports", []):
            for pod in chosen:
                names = [entry["name"] for container in pod.containers for entry in container.get("ports", [])]
                assert port["targetPort"] in names, f"{pod.owner} has no port {port['targetPort']}"
