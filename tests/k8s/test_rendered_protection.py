"""Gateways with certificates and tokens: every file that an option names is one that is mounted."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import yaml

from tests.k8s.rendering import CHART, Pod, named, pods, rendered
from workers.security.peers import PeerTls

_LAPTOP = CHART / "examples/laptop.yaml"
_TOKENS = CHART / "examples/8xH100-tp8.yaml"
_MUTUAL = CHART / "examples/2-nodes-tp8-pp2.yaml"


def _pod(component: str, objects: tuple[dict[str, Any], ...]) -> tuple[Pod, dict[str, Any]]:
    (pod,) = (pod for pod in pods(objects) if pod.component == component)
    (container,) = pod.spec["containers"]
    return pod, container


def _secret_of(pod: Pod, container: dict[str, Any], file: str) -> tuple[str, str]:
    """The Secret that a file in a container is of, and its key there."""
    path = PurePosixPath(file)
    (mount,) = (mount for mount in container["volumeMounts"] if PurePosixPath(mount["mountPath"]) in path.parents)
    assert mount["readOnly"] is True
    (volume,) = (volume for volume in pod.spec["volumes"] if volume["name"] == mount["name"])
    items = volume["secret"].get("items")
    assert items is None or path.name in [item["path"] for item in items]
    return volume["secret"]["secretName"], path.name


def _options(container: dict[str, Any]) -> dict[str, str]:
    pairs = (word.removeprefix("--").partition("=") for word in container["command"] if word.startswith("--"))
    return {name: value for name, _, value in pairs}


def _environment(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}


def test_gateways_find_certificate_and_tokens() -> None:
    pod, container = _pod("gateway", rendered(_TOKENS))
    options = _options(container)
    assert "insecure" not in options
    assert "client-ca" not in options
    assert _secret_of(pod, container, options["certificate"]) == ("llm-tls", "tls.crt")
    assert _secret_of(pod, container, options["key"]) == ("llm-tls", "tls.key")
    assert _secret_of(pod, container, options["tokens"]) == ("phalanx-tokens", "tokens.yaml")


def test_gateways_find_the_authority_of_clients() -> None:
    pod, container = _pod("gateway", rendered(_MUTUAL))
    options = _options(container)
    assert _secret_of(pod, container, options["client-ca"]) == ("phalanx-tls", "ca.crt")
    assert "tokens" not in options


def test_the_certificate_is_of_every_name_that_clients_use() -> None:
    objects = rendered(_TOKENS)
    certificate = named(objects, "Certificate", "llm-tls")["spec"]
    services = [item["metadata"]["name"] for item in objects if item["kind"] == "Service"]
    for service in set(services) - {"llm-registry"}:
        assert {service, f"{service}.models", f"{service}.models.svc"} <= set(certificate["dnsNames"])
    gateway, container = _pod("gateway", objects)
    assert _secret_of(gateway, container, _options(container)["key"])[0] == certificate["secretName"]
    assert not [item for item in rendered(_MUTUAL) if item["kind"] == "Certificate"]


def test_the_test_shows_what_gateways_want() -> None:
    pod, container = _pod("test", rendered(_TOKENS))
    environment = _environment(container)
    assert _secret_of(pod, container, environment["PHALANX_CA"]) == ("llm-tls", "ca.crt")
    assert _secret_of(pod, container, environment["PHALANX_TOKEN_FILE"]) == ("phalanx-test", "token")
    pod, container = _pod("test", rendered(_MUTUAL))
    environment = _environment(container)
    assert _secret_of(pod, container, environment["PHALANX_CERTIFICATE"]) == ("phalanx-test", "tls.crt")
    assert _secret_of(pod, container, environment["PHALANX_KEY"]) == ("phalanx-test", "tls.key")
    assert "PHALANX_TOKEN_FILE" not in environment


def test_where_it_has_nothing_to_show_there_is_no_test() -> None:
    for example in (_TOKENS, _MUTUAL):
        assert "test" not in [pod.component for pod in pods(rendered(example, "security.testSecret="))]
    assert "test" in [pod.component for pod in pods(rendered(_LAPTOP))]


def test_a_public_authority_needs_no_file() -> None:
    _, container = _pod("test", rendered(_TOKENS, "security.tls.ownAuthority=false"))
    assert "PHALANX_CA" not in _environment(container)


def test_the_driver_hands_over_the_secret_that_gateways_show() -> None:
    for settings, secret in (((), "llm-registry"), (("security.registrySecret=mine",), "mine")):
        objects = rendered(_LAPTOP, *settings)
        pod, container = _pod("gateway", objects)
        assert _secret_of(pod, container, _options(container)["registry-secret"]) == (secret, "secret")
        spec = yaml.safe_load(named(objects, "ConfigMap", "llm-spec")["data"]["spec.yaml"])
        pod, container = _pod("driver", objects)
        # Beside the spec, in the folder that goes along with the job.
        (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == f"/etc/phalanx/{spec['registry_secret']}")
        (volume,) = (volume for volume in pod.spec["volumes"] if volume["name"] == mount["name"])
        assert (volume["secret"]["secretName"], mount["subPath"]) == (secret, "secret")
        assert "--working-dir /etc/phalanx " in container["args"][0]


def test_gateways_and_ray_pods_have_the_certificate_of_the_inside_at_the_same_paths() -> None:
    made = ("security.internalTls.certManager.enabled=true", "security.internalTls.certManager.issuerRef.name=inside")
    for settings, secret in ((made, "llm-internal"), (("security.internalTls.existingSecret=mine",), "mine")):
        objects = rendered(_LAPTOP, *settings)
        tls = yaml.safe_load(named(objects, "ConfigMap", "llm-spec")["data"]["spec.yaml"])["internal_tls"]
        inside = [pod for pod in pods(objects) if pod.component in ("gateway", "ray")]
        assert len(inside) == 3
        for pod in inside:
            (container,) = pod.spec["containers"]
            for key, file in (("certificate", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt")):
                assert _secret_of(pod, container, tls[key]) == (secret, file)
                if pod.component == "gateway":
                    assert _options(container)[f"internal-{key}"] == tls[key]
    certificate = named(rendered(_LAPTOP, *made), "Certificate", "llm-internal")["spec"]
    assert certificate["dnsNames"] == [PeerTls.name]
    assert set(certificate["usages"]) == {"server auth", "client auth"}
    assert "internal_tls" not in str(rendered(_LAPTOP))
