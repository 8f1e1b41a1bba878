"""Every object that the chart makes is one that Kubernetes 1.30 to 1.37 and KubeRay know."""

from __future__ import annotations

import functools
import json
import os
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml

from cluster.cli import app
from tests.k8s.command_line import understood
from tests.k8s.monitoring import MONITORING
from tests.k8s.rendering import CHART, EVERYTHING, EXAMPLES, rendered

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")

_VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
_RAY_CLUSTER = json.loads(Path(__file__).with_name("raycluster.schema.json").read_text())
# cert-manager's, as its reference describes the fields that the chart uses.
_CERTIFICATE = {
    "additionalProperties": False,
    "required": ["secretName", "issuerRef", "dnsNames"],
    "properties": {
        "secretName": {"type": "string"},
        "issuerRef": {"required": ["name"], "properties": {"name": {"type": "string"}, "kind": {"type": "string"}}},
        "duration": {"type": "string"},
        "privateKey": {"properties": {"rotationPolicy": {"enum": ["Always", "Never"]}}, "additionalProperties": False},
        "usages": {"items": {"enum": ["server auth", "client auth", "digital signature", "key encipherment"]}},
        "dnsNames": {"type": "array", "minItems": 1, "items": {"type": "string"}},
    },
}
_CRDS = os.environ.get("KUBERAY_CRDS")
_MONITORING_CRDS = os.environ.get("MONITORING_CRDS")


@pytest.fixture(scope="module", autouse=True)
def _read_schemas_once() -> Any:
    """The package reads a version's megabytes of definitions for every object."""
    with pytest.MonkeyPatch.context() as patch:
        once = functools.lru_cache(maxsize=64)(kubernetes_validate.utils.schema_contents)
        patch.setattr(kubernetes_validate.utils, "schema_contents", once)
        yield


def _check(item: dict[str, Any], version: str) -> None:
    """Raises ValidationError where an object has an unknown or wrong field."""
    _check_text(json.dumps(item), version)


@functools.cache
def _check_text(text: str, version: str) -> None:
    item = json.loads(text)
    if item["kind"] == "Certificate":
        jsonschema.validate(item["spec"], _CERTIFICATE)
        return
    if item["kind"] in MONITORING:
        jsonschema.validate(item, MONITORING[item["kind"]])
        return
    if item["kind"] != "RayCluster":
        kubernetes_validate.validate(item, version, strict=True)
        return
    jsonschema.validate(item, _RAY_CLUSTER)
    spec = item["spec"]
    for template in (spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes_validate.validate(pod, version, strict=True)
    if options := spec.get("autoscalerOptions"):
        fields = {"resources", "securityContext", "env", "volumeMounts", "imagePullPolicy"}
        sidecar = {"name": "autoscaler", "image": "x", **{key: options[key] for key in fields}}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"containers": [sidecar]}}
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("kubernetes", _VERSIONS)
@pytest.mark.parametrize("settings", [(), EVERYTHING], ids=["as it is", "everything on"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_object_is_valid(example: Path, settings: tuple[str, ...], kubernetes: str) -> None:
    objects = rendered(example, *settings, kubernetes=kubernetes)
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(names)) == len(names) >= 10
    for item in objects:
        _check(item, kubernetes)


def test_the_job_of_its_own_is_valid_and_of_this_version() -> None:
    job = yaml.safe_load((CHART.parent / "ray-job.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    _check({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "x"}, "spec": cluster}, "1.34")
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert cluster["rayVersion"] == values["ray"]["version"]
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert head["image"] == f"phalanx:{version}-cpu"
    understood(typer.main.get_command(app), shlex.split(job["spec"]["entrypoint"]))


def test_a_wrong_field_is_found() -> None:
    for item in rendered(EXAMPLES[0], *EVERYTHING):
        if item["kind"] in ("Deployment", "RayCluster", "NetworkPolicy", "ConfigMap", *MONITORING):
            with pytest.raises(jsonschema.ValidationError):
                _check({**item, "no-such-field": 1}, "1.34")


@pytest.mark.skipif(_CRDS is None, reason="set KUBERAY_CRDS to the folder of `helm show crds kuberay/kuberay-operator`")
@pytest.mark.parametrize("settings", [(), EVERYTHING], ids=["as it is", "everything on"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_kuberays_own_definition_takes_the_cluster(example: Path, settings: tuple[str, ...]) -> None:
    assert _CRDS is not None
    versions = yaml.safe_load((Path(_CRDS) / "ray.io_rayclusters.yaml").read_text())["spec"]["versions"]
    (schema,) = (version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    _close(schema["properties"]["spec"])
    for item in rendered(example, *settings):
        if item["kind"] == "RayCluster":
            jsonschema.validate(item, schema)


@pytest.mark.skipif(
    _MONITORING_CRDS is None,
    reason="set MONITORING_CRDS to the folder of prometheus-operator's example/prometheus-operator-crd",
)
def test_the_prometheus_operators_own_definitions_take_what_is_monitored() -> None:
    assert _MONITORING_CRDS is not None
    kinds = []
    for item in rendered(EXAMPLES[0], *EVERYTHING):
        if item["kind"] in MONITORING:
            file = Path(_MONITORING_CRDS) / f"monitoring.coreos.com_{item['kind'].lower()}s.yaml"
            versions = yaml.safe_load(file.read_text())["spec"]["versions"]
            wanted = item["apiVersion"].partition("/")[2]
            (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == wanted and v["served"])
            _close(schema["properties"]["spec"])
            # Its patterns are Go's: not to be compiled before they are needed.
            jsonschema.Draft202012Validator(schema).validate(item)
            kinds.append(item["kind"])
    assert sorted(kinds) == sorted(MONITORING)


def _close(schema: Any) -> None:
    """Makes a structural schema refuse what an API server would silently drop."""
    if isinstance(schema, list):
        for part in schema:
            _close(part)
    elif isinstance(schema, dict):
        if schema.pop("x-kubernetes-int-or-string", False):
            schema.pop("anyOf", None)
        elif isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
        for part in list(schema.values()):
            _close(part)
